// The one thread pool of the process: pinned threads, woken together, asleep while idle.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace hagane {

class Pool {
 public:
  using Task = void (*)(void* context, int64_t index);

  static Pool& instance();
  ~Pool() { stop(); }

  // Pin one thread to each of `cores`; the caller is the first of them.
  void start(const std::vector<int>& cores);
  // Let the threads of the process' OpenMP runtime, `threads` with the caller, do the work instead:
  // between operations of a library that uses them, a second pool would wait for the cores on
  // which they spin. False where GNU's runtime is not loaded.
  bool borrow(int threads);
  void stop();
  int threads() const { return threads_; }

  // Calls fn(index) for 0 <= index < count on all threads; returns when all are done. A thread's calls
  // follow one another, but for the last ones: what is asked for ahead of a call is there at the next.
  // While another thread's call has the pool (an adapter is packed during a step), the caller works alone.
  template <class F>
  void run(int64_t count, const F& fn) {
    auto call = [](void* context, int64_t index) { (*static_cast<const F*>(context))(index); };
    dispatch(count, call, const_cast<F*>(&fn));
  }

 private:
  // The indices that one thread begins with, in order; the others take from it what it leaves.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void dispatch(int64_t count, Task task, void* context);
  void work(uint32_t seen);
  void drain();

  // GNU's libgomp: runs fn(data) on so many threads, the caller's among them.
  using Parallel = void (*)(void (*fn)(void* data), void* data, unsigned threads, unsigned flags);

  std::mutex running_;  // held by the call that has the threads
  std::vector<std::thread> workers_;
  int threads_ = 1;
  Parallel parallel_ = nullptr;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::unique_ptr<Range[]> ranges_;  // [threads]
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace hagane
