#include "team.h"

#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace steer::cpu {

namespace {

constexpr int kLooks = 300;  // polls before sleeping: some 5 to 10 microseconds

inline void pause() {
#ifdef __x86_64__
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// The threads other than the caller of run(), and what they wait on.
struct Team::Workers {
  const pid_t process = getpid();
  std::vector<std::thread> threads;

  std::mutex mutex;  // guards the next four
  std::condition_variable changed;
  const std::function<void(Member&)>* job = nullptr;
  std::int64_t jobs = 0;
  bool closing = false;
  std::atomic<int> inside{0};  // workers in the job; raised under the lock, with job not null
};

Team::Team(int threads) : size_(threads) { start(); }

Team::~Team() {
  if (workers_->process != getpid()) {
    leave();
    return;
  }
  {
    std::lock_guard lock(workers_->mutex);
    workers_->closing = true;
  }
  workers_->changed.notify_all();
  for (std::thread& worker : workers_->threads) worker.join();
}

void Team::start() {
  workers_ = std::make_unique<Workers>();
  for (int i = 1; i < size_; ++i)
    workers_->threads.emplace_back([this, &workers = *workers_, i] { work(workers, i); });
}

// In a forked process. Whatever ends such an object would wait for its threads, or find its lock
// held by one of them; so its memory is given up, some hundred bytes for each fork.
void Team::leave() { static_cast<void>(workers_.release()); }

void Team::run(const std::function<void(Member&)>& job) {
  if (workers_->process != getpid()) {
    leave();
    start();
  }
  Workers& workers = *workers_;
  drawn_ = 0;
  done_ = 0;
  {
    std::lock_guard lock(workers.mutex);
    workers.job = &job;
    ++workers.jobs;
  }
  workers.changed.notify_all();
  Member own(*this, 0);
  job(own);
  std::unique_lock lock(workers.mutex);
  workers.job = nullptr;  // threads that have not come by now need not come
  lock.unlock();
  for (int looks = 0; workers.inside != 0 && looks < kLooks; ++looks) pause();
  lock.lock();
  workers.changed.wait(lock, [&] { return workers.inside == 0; });
}

void Team::work(Workers& workers, int index) {
  std::int64_t seen = 0;
  std::unique_lock lock(workers.mutex);
  for (;;) {
    workers.changed.wait(lock,
                         [&] { return workers.closing || (workers.job && workers.jobs != seen); });
    if (workers.closing) return;
    const auto* job = workers.job;
    seen = workers.jobs;
    ++workers.inside;
    lock.unlock();
    Member member(*this, index);
    (*job)(member);
    lock.lock();
    if (--workers.inside == 0) workers.changed.notify_all();
  }
}

void Team::await(std::int64_t done) {
  const auto wanted = static_cast<std::int32_t>(done);
  for (int looks = 0;; ++looks) {
    const std::int32_t now = done_.load(std::memory_order_acquire);
    if (now >= wanted) return;
    if (looks < kLooks)
      pause();
    else
      done_.wait(now, std::memory_order_acquire);
  }
}

void Team::Member::finish() {
  if (team_.done_.fetch_add(1, std::memory_order_acq_rel) + 1 == end_) team_.done_.notify_all();
}

}  // namespace steer::cpu
