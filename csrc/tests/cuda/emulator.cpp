// The scheduler of the emulated device. Never instrumented: the thread sanitizer is told of fibers as if they were threads, and
// of barriers and fences as what orders them; nothing else here orders anything for it.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

#ifdef EMULATED_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_destroy_fiber(void*) {}
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif
#ifdef EMULATED_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, std::size_t* size);
}
#else
static void __sanitizer_start_switch_fiber(void**, const void*, std::size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*) {}
#endif

namespace emulated {

int processors = 1, workers = 4, failing_allocations = 0;
unsigned seed = 1;
long long launches = 0, failures = 0;
int launched_on = 0;

namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kSharedMemory = 48 * 1024;
constexpr unsigned kNoOrder = 1;  // of a switch between fibers, for the thread sanitizer
enum State { kReady, kAtBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  dim3 index;
  int number = 0;
  State state = kReady;
  const char* file = nullptr;
  int line = 0;
  void* tsan = nullptr;
  void* fake = nullptr;
  char* fence = nullptr;    // what this thread's last fence released
  std::vector<char*> read;  // what the flags that it has read since then were stored behind
};

struct Warp {
  unsigned char slots[2][32][16];
  int phase = 0, arrived = 0, size = 0;
  char sync[2];
};

struct Block {
  dim3 index, size, grid;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> dynamic;
  ucontext_t scheduler;
  void* tsan = nullptr;
  void* fake = nullptr;
  const void* bottom = nullptr;
  std::size_t bottom_size = 0;
  Fiber* current = nullptr;
  int phase = 0, arrived = 0, done = 0;
  char sync[2];
  const std::function<void()>* body = nullptr;
  std::mt19937 order;
};

thread_local Block* block = nullptr;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
char launched, finished;

// A lock that the thread sanitizer does not see: it would order what nothing orders.
class Hidden {
 public:
  Hidden() {
    while (__atomic_exchange_n(&taken_, true, __ATOMIC_ACQUIRE)) std::this_thread::yield();
  }
  ~Hidden() { __atomic_store_n(&taken_, false, __ATOMIC_RELEASE); }

 private:
  static bool taken_;
};
bool Hidden::taken_ = false;
std::map<const int*, char*>& stored_behind() {
  static std::map<const int*, char*> fences;
  return fences;
}

void report(const char* what, const Fiber& fiber) {
  __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
  std::fprintf(stderr, "EMULATOR: %s: block (%u, %u, %u) thread %d at %s:%d\n", what, block->index.x, block->index.y,
               block->index.z, fiber.number, fiber.file ? fiber.file : "?", fiber.line);
}

[[noreturn]] void give_up(const char* what, State state) {
  for (const Fiber& fiber : block->fibers)
    if (fiber.state == state) {
      report(what, fiber);
      break;
    }
  std::abort();
}

void to_scheduler() {
  Fiber& fiber = *block->current;
  __tsan_switch_to_fiber(block->tsan, kNoOrder);
  __sanitizer_start_switch_fiber(fiber.state == kDone ? nullptr : &fiber.fake, block->bottom, block->bottom_size);
  swapcontext(&fiber.context, &block->scheduler);
  __sanitizer_finish_switch_fiber(fiber.fake, &block->bottom, &block->bottom_size);
}

void to_fiber(Fiber& fiber) {
  block->current = &fiber;
  __tsan_switch_to_fiber(fiber.tsan, kNoOrder);
  __sanitizer_start_switch_fiber(&block->fake, fiber.stack, kStack);
  swapcontext(&block->scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(block->fake, nullptr, nullptr);
}

void start() {
  __sanitizer_finish_switch_fiber(nullptr, &block->bottom, &block->bottom_size);
  __tsan_acquire(&launched);
  (*block->body)();
  __tsan_release(&finished);
  block->current->state = kDone;
  ++block->done;
  to_scheduler();
}

void prepare(Block& b, std::uint64_t number, std::size_t shared, std::vector<void*>& stacks) {
  const int count = int(b.size.x * b.size.y * b.size.z);
  b.fibers = std::vector<Fiber>(count);
  b.warps = std::vector<Warp>((count + 31) / 32);
  b.dynamic.assign(shared, 0xA5);
  b.phase = b.arrived = b.done = 0;
  b.order.seed(seed + 7919 * unsigned(number));
  b.tsan = __tsan_get_current_fiber();
  while (int(stacks.size()) < count)
    stacks.push_back(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = b.fibers[i];
    fiber.number = i;
    fiber.index = dim3(i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y));
    fiber.stack = stacks[i];
    ++b.warps[i / 32].size;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    fiber.tsan = __tsan_create_fiber(0);
  }
}

// Where no thread can go on: a warp operation or a barrier that some have passed by. Hardware may go on, the language does not
// promise it.
void refuse_deadlock(const Block& b) {
  for (const Warp& warp : b.warps)
    if (warp.arrived > 0) give_up("a warp operation that not all lanes reach", kAtWarpBarrier);
  if (b.arrived + b.done == int(b.fibers.size())) give_up("a barrier that not all threads reach", kAtBarrier);
}

void run_block(Block& b, std::uint64_t number, std::size_t shared, std::vector<void*>& stacks) {
  block = &b;
  prepare(b, number, shared, stacks);
  const int count = int(b.fibers.size());
  while (b.done < count) {
    std::vector<int> ready;
    for (int i = 0; i < count; ++i)
      if (b.fibers[i].state == kReady) ready.push_back(i);
    if (ready.empty()) refuse_deadlock(b);
    std::shuffle(ready.begin(), ready.end(), b.order);
    for (int i : ready)
      if (b.fibers[i].state == kReady) to_fiber(b.fibers[i]);
  }
  if (kThreadSanitizer) {
    __tsan_acquire(&finished);
    for (Fiber& fiber : b.fibers) __tsan_destroy_fiber(fiber.tsan);
    for (void* stack : stacks) munmap(stack, kStack);
    stacks.clear();
  }
  block = nullptr;
}

}  // namespace

dim3 thread_index() { return block->current->index; }
dim3 block_index() { return block->index; }
dim3 block_size() { return block->size; }
dim3 grid_size() { return block->grid; }
void* dynamic_shared() { return block->dynamic.data(); }

void barrier(const char* file, int line) {
  Block& b = *block;
  Fiber& me = *b.current;
  const int phase = b.phase;
  me.file = file;
  me.line = line;
  __tsan_release(&b.sync[phase]);
  if (++b.arrived == int(b.fibers.size())) {
    b.arrived = 0;
    b.phase ^= 1;
    for (Fiber& fiber : b.fibers)
      if (fiber.state == kAtBarrier) {
        if (fiber.line != line || fiber.file != file) report("threads wait at different barriers", fiber);
        fiber.state = kReady;
      }
  } else {
    me.state = kAtBarrier;
  }
  to_scheduler();
  __tsan_acquire(&b.sync[phase]);
}

static int wait_for_warp(unsigned mask, const char* file, int line) {
  Block& b = *block;
  Fiber& me = *b.current;
  Warp& warp = b.warps[me.number / 32];
  const int phase = warp.phase;
  me.file = file;
  me.line = line;
  if (mask != 0xffffffffu) report("only whole warps are emulated", me);
  __tsan_release(&warp.sync[phase]);
  if (++warp.arrived == warp.size) {
    warp.arrived = 0;
    warp.phase ^= 1;
    for (Fiber& fiber : b.fibers)
      if (fiber.number / 32 == me.number / 32 && fiber.state == kAtWarpBarrier) {
        if (fiber.line != line || fiber.file != file) report("lanes wait at different warp operations", fiber);
        fiber.state = kReady;
      }
  } else {
    me.state = kAtWarpBarrier;
  }
  to_scheduler();
  __tsan_acquire(&warp.sync[phase]);
  return phase;
}

void warp_barrier(unsigned mask, const char* file, int line) { wait_for_warp(mask, file, line); }

void exchange(unsigned mask, void* value, std::size_t bytes, int from, const char* file, int line) {
  Warp& warp = block->warps[block->current->number / 32];
  const int me = block->current->number % 32;
  std::memcpy(warp.slots[warp.phase][me], value, bytes);
  const int phase = wait_for_warp(mask, file, line);
  if (from >= warp.size) report("a lane is read that does not exist", *block->current);
  std::memcpy(value, warp.slots[phase][from], bytes);
}

// What this thread has seen so far is released to whoever reads a flag that it stores from now on, and fences after that; what
// lies behind the flags that it has read is acquired.
void fence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (!kThreadSanitizer) return;
  Fiber& me = *block->current;
  for (char* released : me.read) __tsan_acquire(released);
  me.read.clear();
  me.fence = new char;  // lives as long as the process, so that no other fence is taken for it
  __tsan_release(me.fence);
}

int load_flag(const int* at) {
  if (!kThreadSanitizer) return __atomic_load_n(at, __ATOMIC_RELAXED);
  const Hidden lock;
  const auto found = stored_behind().find(at);
  if (found != stored_behind().end() && found->second) block->current->read.push_back(found->second);
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}

void store_flag(int* at, int value) {
  if (kThreadSanitizer) {
    const Hidden lock;
    stored_behind()[at] = block->current->fence;
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
  } else {
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
  }
}

void wait_a_little() {
  std::this_thread::yield();
  to_scheduler();
}

void launch(dim3 grid, dim3 size, std::size_t shared, const std::function<void()>& body, const char* name) {
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 2147483647u && grid.y <= 65535 &&
                    grid.z <= 65535 && size.x >= 1 && size.y >= 1 && size.z >= 1 && size.z <= 64 &&
                    size.x * size.y * size.z <= 1024 && shared <= kSharedMemory;
  if (!fits) {
    std::fprintf(stderr, "EMULATOR: %s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes: refused\n", name, grid.x,
                 grid.y, grid.z, size.x, size.y, size.z, shared);
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  ++launches;
  launched_on = current_device;
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  std::atomic<std::uint64_t> next{0};
  __tsan_release(&launched);
  const auto work = [&](bool only_one) {
    std::vector<void*> stacks;
    Block b;
    for (std::uint64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      const std::uint64_t n = seed % 2 ? i : blocks - 1 - i;  // no order is promised
      b.index =
          dim3(unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / (std::uint64_t(grid.x) * grid.y)));
      b.size = size;
      b.grid = grid;
      b.body = &body;
      run_block(b, n, shared, stacks);
      if (only_one) break;
    }
    for (void* stack : stacks) munmap(stack, kStack);
  };
  // Under the thread sanitizer a thread of the system for each block: shared memory is its own, and no block comes after another.
  const std::uint64_t rounds = kThreadSanitizer ? (blocks + workers - 1) / workers : 1;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    std::vector<std::thread> pool;
    const std::uint64_t left = kThreadSanitizer ? blocks - round * workers : blocks;
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(workers, left); ++i)
      pool.emplace_back(work, kThreadSanitizer);
    for (std::thread& thread : pool) thread.join();
  }
  __tsan_acquire(&finished);
}

}  // namespace emulated

cudaError_t cudaMalloc(void** data, std::size_t bytes) { return cudaMallocAsync(data, bytes, nullptr); }
cudaError_t cudaFree(void* data) { return cudaFreeAsync(data, nullptr); }
cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t) {
  if (emulated::failing_allocations > 0) {
    --emulated::failing_allocations;
    return emulated::last_error = cudaErrorMemoryAllocation;
  }
  *data = std::malloc(bytes ? bytes : 1);
  std::memset(*data, 0xA5, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = emulated::current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulated::kDevices) return emulated::last_error = cudaErrorInvalidDevice;
  emulated::current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulated::processors;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = emulated::last_error;
  emulated::last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid argument";
  }
}
