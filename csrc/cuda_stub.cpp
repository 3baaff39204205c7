// The CUDA half where it is not built: the same symbols, each of which throws.
#include "error.h"
#include "ops.h"

namespace tightpass::cuda {
namespace {

[[noreturn]] void absent() { throw Error("built without CUDA"); }

}  // namespace

bool built() { return false; }

OnDevice::OnDevice(int) { absent(); }
OnDevice::~OnDevice() {}

template <class T> void run(const AttentionBlocks<T>&, Stream) { absent(); }
template <class T> void run(const GatherRows<T>&, Stream) { absent(); }
template <class T> void run(const BulgeChase<T>&, Stream) { absent(); }
void run(const Bisection&, Stream) { absent(); }
void run(const SturmCounts&, Stream) { absent(); }

template void run(const AttentionBlocks<float>&, Stream);
template void run(const AttentionBlocks<double>&, Stream);
template void run(const GatherRows<float>&, Stream);
template void run(const GatherRows<double>&, Stream);
template void run(const BulgeChase<float>&, Stream);
template void run(const BulgeChase<double>&, Stream);

}  // namespace tightpass::cuda
