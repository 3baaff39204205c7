// What tests may ask of the emulated device, beside what a real one offers.
#pragma once

namespace emulated {

extern int processors;           // multiprocessors of the device
extern int workers;              // blocks that run at a time
extern unsigned seed;            // of the order in which threads and blocks run
extern int failing_allocations;  // so many of the next ones fail
extern long long launches;       // kernels that were launched
extern int launched_on;          // the device of the last one
constexpr int kDevices = 2;
extern long long failures;  // barriers that not all threads reached, and the like

}  // namespace emulated
