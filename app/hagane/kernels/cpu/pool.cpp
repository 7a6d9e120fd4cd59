#include "pool.h"

#include <algorithm>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#endif

namespace hagane {
namespace {

// How long a worker spins for the next operation before it sleeps. The gaps between the operations
// of one forward pass are a few microseconds, a wake-up through the kernel costs about fifty.
constexpr int kSpins = 2000;
// How often the calling thread then offers its core before it sleeps until the workers are done.
constexpr int kYields = 64;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` takes no time on most cores
#else
  std::this_thread::yield();
#endif
}

void pin(int core) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
  (void)core;
#endif
}

}  // namespace

Pool& Pool::instance() {
  static Pool pool;
  return pool;
}

void Pool::start(const std::vector<int>& cores) {
  stop();
  ranges_ = std::make_unique<Range[]>(std::max<size_t>(1, cores.size()));
  // A worker that is slow to begin must not take an earlier generation for its first call.
  const uint32_t seen = generation_.load();
  for (size_t i = 1; i < cores.size(); ++i) {
    workers_.emplace_back([this, seen, core = cores[i]] {
      pin(core);
      work(seen);
    });
  }
  threads_ = static_cast<int>(workers_.size()) + 1;
}

bool Pool::borrow(int threads) {
#if defined(__linux__)
  stop();
  parallel_ = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (parallel_) {
    ranges_ = std::make_unique<Range[]>(threads);
    threads_ = threads;
  }
#endif
  return parallel_ != nullptr;
}

void Pool::stop() {
  stopping_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
  stopping_ = false;
  threads_ = 1;
  parallel_ = nullptr;
}

void Pool::dispatch(int64_t count, Task task, void* context) {
  const std::unique_lock<std::mutex> lock(running_, std::try_to_lock);
  if (threads_ == 1 || count <= 1 || !lock) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  task_ = task;
  context_ = context;
  for (int t = 0; t < threads_; ++t) {
    ranges_[t].next.store(count * t / threads_, std::memory_order_relaxed);
    ranges_[t].end = count * (t + 1) / threads_;
  }
  arrived_.store(0, std::memory_order_relaxed);
  if (parallel_) {
    parallel_([](void* pool) { static_cast<Pool*>(pool)->drain(); }, this, threads_, 0);
    return;
  }
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain();
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      relax();
    } else if (spins < kSpins + kYields) {
      // A worker may have lost its core to another process: let it have this one.
      std::this_thread::yield();
    } else if (const int busy = busy_.load(std::memory_order_acquire)) {
      busy_.wait(busy, std::memory_order_acquire);
    }
  }
}

void Pool::drain() {
  const int own = arrived_.fetch_add(1, std::memory_order_relaxed);
  for (int t = 0; t < threads_; ++t) {
    Range& range = ranges_[(own + t) % threads_];
    for (int64_t index; (index = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;)
      task_(context_, index);
  }
}

void Pool::work(uint32_t seen) {
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) relax();
      else generation_.wait(seen, std::memory_order_acquire);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    drain();
    if (busy_.fetch_sub(1, std::memory_order_release) == 1) busy_.notify_one();
  }
}

}  // namespace hagane
