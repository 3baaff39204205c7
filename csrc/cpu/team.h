// Which thread of how many this is, with OpenMP or without.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include "isa.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {

#ifdef _OPENMP
inline int this_thread() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }
#else
inline int this_thread() { return 0; }
inline int team_size() { return 1; }
#endif

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
