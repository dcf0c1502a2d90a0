// Random operations on the core without Python, for the sanitizers:
// `random_workload SEEDS STEPS [THREADS]`.
// What is right is proved by check_integrity() after every operation and by everything coming to
// its end; the tokens themselves are checked by tests/csrc/test_random.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "schedule/scheduler.h"

using namespace steer;

namespace {

const std::vector<std::string> kTokenBytes{"a", "b", "c", "\n", "\n\n", ".\n\n", "\n\n\n", ""};

class Workload {
 public:
  explicit Workload(unsigned seed)
      : seed_(seed),
        random_(seed),
        scheduler_(config(seed), {"\n\n", "c."}, kTokenBytes, kTokenBytes) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      if (i % 200 == 0) ahead_ = below(4) * 4;
      operation(below(100));
      check();
    }
    for (int round = 0; !alive_.empty(); ++round) {
      if (round > 100000) throw std::runtime_error("the sequences do not come to an end");
      operation(20 + round % 3 * 20);
      check();
    }
    const auto& counters = scheduler_.counters();
    std::printf(
        "seed %u: preemptions %lld, lent slabs %lld, ahead %lld, void %lld, hits %lld + %lld, "
        "parked %lld, restored %lld, drafts %d, guesses %lld + %lld + %lld, "
        "crossings %d\n",
        seed_, static_cast<long long>(counters.preemptions),
        static_cast<long long>(scheduler_.pool().lent()),
        static_cast<long long>(counters.ahead[0] + counters.ahead[1]),
        static_cast<long long>(counters.voided[0] + counters.voided[1]),
        static_cast<long long>(counters.hits[0]), static_cast<long long>(counters.hits[1]),
        static_cast<long long>(counters.saved), static_cast<long long>(counters.restored),
        verified_, static_cast<long long>(drafted_), static_cast<long long>(looked_up_),
        static_cast<long long>(reused_), crossings_);
    std::fflush(stdout);
    if (verified_ == 0 || drafted_ == 0 || looked_up_ == 0 || crossings_ == 0)
      throw std::runtime_error("no draft was verified, or found, or no text has crossed");
  }

 private:
  static SchedulerConfig config(unsigned seed) {
    SchedulerConfig made;
    made.slots = seed % 2 ? std::array<std::int32_t, kModels>{9, 1}
                          : std::array<std::int32_t, kModels>{7, 2};
    made.slabs = seed % 2 ? 11 : 5;
    made.block_tokens = 4;
    made.background = {static_cast<int>(seed % 3), static_cast<int>(seed % 5)};
    made.lanes.policy = static_cast<LanePolicy>(seed % 4);
    made.lanes.hold_ticks = 5;
    made.lanes.automatic_from = 3;
    made.max_context = 40;
    made.max_sequences = 7;
    made.max_tick_tokens = seed % 3 ? 64 : 9;
    made.recompute_cost = {1.0, 15.0};
    made.prefix_cache = seed % 4 < 2;
    made.eager_admission = seed % 3 > 0;
    made.host_blocks = made.prefix_cache ? static_cast<int>(seed % 8) * 5 : 0;
    return made;
  }

  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  void operation(int draw) {
    if (draw < 10) return add();
    if (draw < 40) return lane(draw % 2);
    if (draw < 60) return lane(1 - draw % 2);
    if (draw < 90) return answer();
    if (alive_.empty()) return;
    const SequenceId id = alive_[below(static_cast<int>(alive_.size()))];
    const Sequence& sequence = scheduler_.sequence(id);
    if (sequence.phase == Phase::finished) return;  // its event has not been taken yet
    if (draw < 93) {
      scheduler_.preempt(id);
    } else if (draw < 94) {
      scheduler_.abort(id);
    } else if (draw < 97 && truncations_++ % 3 == 0) {
      if (sequence.request.relay) return;  // what has crossed cannot be taken back
      scheduler_.truncate(id, sequence.settled + below(sequence.length() - sequence.settled + 1));
    } else if (sequence.truncate_pending < 0 && sequence.trial_from < 0) {
      scheduler_.settle(id, (sequence.settled + sequence.length()) / 2);
    }
  }

  void add() {
    if (alive_.size() >= 10) return;
    Request request;
    for (int i = below(14) + 1, family = below(3); i > 0; --i)
      request.prompt.push_back((family + i) % 7);
    request.max_tokens = 1 + below(40 - static_cast<int>(request.prompt.size()));
    request.stop_ids = {7};
    if (below(3) == 0) request.stop_strings = {"ab\n", "cc"};
    request.min_tokens = below(4);
    request.max_step_tokens = below(2) * 5;
    request.reader = below(3) - 1;
    request.priority = below(3) - 1;
    request.settle_at_once = below(2) == 0;
    if (request.reader != kNobody)
      request.trial_tokens = std::min(below(8) - 1, request.max_tokens);
    if (below(3) == 0) request.think_end = {0, 1}, request.max_think_tokens = below(3) * 4;
    request.think_closed = below(6) == 0;
    if (below(3) == 0) request.max_repeats = 9;
    request.ahead = below(5) > 0;
    request.draft_tokens = below(2) * below(8);
    request.draft_source = static_cast<DraftSource>(below(3));
    int samples = below(4) == 0 ? 1 + below(3) : 1;
    if (below(5) == 0) samples = 1, relay(request);
    if (request.draft_tokens > 0 && request.draft_source == DraftSource::small &&
        request.reader != kLarge)
      request.verified = below(2) == 0, request.finishes_step = below(2) == 0;
    const SequenceId first = scheduler_.add(request, samples);
    for (int sample = 0; sample < samples; ++sample) alive_.push_back(first + sample);
  }

  // The models have different tokens.
  static void relay(Request& request) {
    request.relay = request.settle_at_once = true;
    request.min_tokens = 0;
    request.draft_source = DraftSource::lookup;
    if (request.reader == kLarge) request.reader = kSmall;
  }

  void lane(int lane) {
    const Plan &one = scheduler_.buffers(lane, 0), &two = scheduler_.buffers(lane, 1);
    const int flying = one.in_flight + two.in_flight;
    if (flying == 0 || (flying == 1 && below(10) < ahead_))
      if (scheduler_.plan(lane, true) > 0 || flying == 0) return;
    const Plan& plan = !two.in_flight || (one.in_flight && one.tick < two.tick) ? one : two;
    if (below(400) == 0) return scheduler_.fail(lane);
    std::vector<Token> tokens(plan.draws);
    for (auto& token : tokens) token = below(200) == 0 ? -1 : below(40) == 0 ? 7 : below(7);
    agree(plan, tokens);
    scheduler_.commit(lane, tokens);
  }

  // Of the large model's draws some are what was guessed.
  void agree(const Plan& plan, std::vector<Token>& tokens) {
    std::size_t at = 0;
    for (std::int32_t i = 0; i < plan.sequences; ++i) {
      const std::int32_t draws = plan.samples[i];
      const Sequence* sequence = plan.members[i];
      const std::int32_t guesses = sequence == nullptr || plan.guesses[i]
                                       ? 0
                                       : static_cast<std::int32_t>(sequence->draft.size());
      for (std::int32_t place = 0; place < std::min(draws, guesses); ++place)
        if (below(4) > 0) tokens[at + place] = sequence->draft.at(place);
      verified_ += draws > 1;
      at += std::max(1, draws);
    }
  }

  void answer() {
    for (const Event& event : scheduler_.take_events()) {
      if (event.shadow) {
        come_back(event);
      } else if (event.kind == EventKind::finished) {
        std::erase(alive_, event.sequence);
        forget(event.sequence);
      } else if (scheduler_.sequence(event.sequence).awaits_route && !cross(event.sequence)) {
        const bool relayed = scheduler_.sequence(event.sequence).request.relay;
        scheduler_.route(event.sequence, relayed ? kSmall : below(2), below(8) == 0, below(8) == 0);
      }
    }
  }

  void forget(SequenceId id) {
    count(scheduler_.sequence(id).usage.speculation);
    scheduler_.forget(id);
  }

  std::vector<Token> words(int most) {
    std::vector<Token> words(below(most + 1));
    for (Token& word : words) word = below(7);
    return words;
  }

  // A relayed sequence goes to the large model, if its shadow can take it.
  bool cross(SequenceId id) {
    if (!scheduler_.sequence(id).request.relay || below(3) == 0) return false;
    if (!shadows_.contains(id))
      shadows_[id] = scheduler_.add_shadow(id, {0, 1, 2, 0, below(3)}, {7}, {});
    const auto shadow = scheduler_.shadow_of(id);
    const std::vector<Token> text = words(4);
    if (!shadow || !scheduler_.sequence(*shadow).awaits_route ||
        scheduler_.sequence(*shadow).length() + std::ssize(text) >= scheduler_.longest())
      return false;
    scheduler_.cross(id, text, below(8) == 0);
    return true;
  }

  // A shadow has written its step, or has ended.
  void come_back(const Event& event) {
    const SequenceId id = event.sequence, shadow = shadows_.at(id);
    if (std::ranges::count(alive_, id) > 0 && scheduler_.sequence(id).away) {
      scheduler_.cross_back(id, words(4), scheduler_.sequence(shadow).finish);
      ++crossings_;
    }
    if (event.kind == EventKind::finished) forget(shadow);
  }

  void count(const SpeculationCounts& counts) {
    drafted_ += counts.drafted;
    looked_up_ += counts.looked_up;
    reused_ += counts.reused;
  }

  void check() { scheduler_.check_integrity(); }

  unsigned seed_;
  std::mt19937 random_;
  Scheduler scheduler_;
  std::vector<SequenceId> alive_;
  int truncations_ = 0;
  int verified_ = 0;  // drafts
  // Guesses by their source.
  std::int64_t drafted_ = 0, looked_up_ = 0, reused_ = 0;
  std::unordered_map<SequenceId, SequenceId> shadows_;  // by sequence, forgotten ones too
  int crossings_ = 0;
  int ahead_ = 0;  // plans of ten that are made ahead where they can be
};

}  // namespace

int main(int count, char** arguments) {
  const auto argument = [&](int index, int missing) {
    return count > index ? std::atoi(arguments[index]) : missing;
  };
  const int seeds = argument(1, 8), steps = argument(2, 5000), threads = argument(3, 1);
  std::vector<std::thread> running;
  // Each thread has schedulers of its own: what they would share, a thread sanitizer sees.
  for (int thread = 0; thread < threads; ++thread)
    running.emplace_back([=] {
      for (int seed = thread; seed < seeds; seed += threads)
        Workload(static_cast<unsigned>(seed)).run(steps);
    });
  for (auto& thread : running) thread.join();
}
