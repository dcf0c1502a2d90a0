#include "team.h"

#include <utility>

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

Team::Team(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Team::~Team() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::run(const std::function<void(Member&)>& job) {
  drawn_ = 0;
  done_ = 0;
  {
    std::lock_guard lock(mutex_);
    job_ = &job;
    ++jobs_;
  }
  changed_.notify_all();
  Member own(*this, 0);
  job(own);
  std::unique_lock lock(mutex_);
  job_ = nullptr;  // threads that have not come by now need not come
  lock.unlock();
  for (int looks = 0; inside_ != 0 && looks < kLooks; ++looks) pause();
  lock.lock();
  changed_.wait(lock, [this] { return inside_ == 0; });
}

void Team::work(int index) {
  std::int64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || (job_ && jobs_ != seen); });
    if (closing_) return;
    const auto* job = job_;
    seen = jobs_;
    ++inside_;
    lock.unlock();
    Member member(*this, index);
    (*job)(member);
    lock.lock();
    if (--inside_ == 0) changed_.notify_all();
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
