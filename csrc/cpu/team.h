// A few threads that go through a job's phases together.
//
// A job is a function that every thread of the team runs; it consists of phases, each of them a
// number of tasks that the threads draw. A phase ends when its tasks are done, not when all threads
// have arrived: one that is late, or that the machine has descheduled, delays no other unless it
// holds a task. Between jobs threads sleep. Between phases they poll for some microseconds, then
// sleep too.
//
// Threads do not survive a fork. In a forked process a team starts new ones at its next job, and
// leaves the old ones, which do not exist there, alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace steer::cpu {

class Team {
 public:
  // `threads` counts the one that calls run().
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  class Member;
  // Runs the job on every thread; returns when all of its phases are done and all threads have left
  // it. One call at a time. The job must not throw.
  void run(const std::function<void(Member&)>& job);

 private:
  struct Workers;
  void start();
  void leave();
  void work(Workers& workers, int index);
  void await(std::int64_t done);

  const int size_;
  std::unique_ptr<Workers> workers_;  // of the process that made them

  // Tasks of this job, counted over all of its phases.
  alignas(64) std::atomic<std::int64_t> drawn_{0};
  alignas(64) std::atomic<std::int32_t> done_{0};
};

// One thread within a job. All members go through the same phases in the same order.
class Team::Member {
 public:
  Member(Team& team, int index) : index(index), team_(team) {}

  // Calls task(i) once for each i in [0, tasks), each on one of the threads.
  template <typename Task>
  void phase(std::int64_t tasks, Task&& task) {
    const std::int64_t begin = end_;
    end_ += tasks;
    std::int64_t next = team_.drawn_.load(std::memory_order_relaxed);
    while (next < end_) {
      if (!team_.drawn_.compare_exchange_weak(next, next + 1, std::memory_order_relaxed)) continue;
      task(next - begin);
      finish();
      next = team_.drawn_.load(std::memory_order_relaxed);
    }
    team_.await(end_);
  }

  const int index;  // in [0, team size)

 private:
  void finish();

  Team& team_;
  std::int64_t end_ = 0;
};

}  // namespace steer::cpu
