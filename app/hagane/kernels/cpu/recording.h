// A step recorded once and replayed: no Python between its kernels, and rows that pass through several of
// them do so in one go.
#pragma once

#include <functional>
#include <vector>

#include "dispatch.h"

namespace hagane {

class Recording {
 public:
  void add(std::function<void()> kernel) { steps_.push_back({{}, std::move(kernel)}); }

  void add(RowWork work) {
    if (!steps_.empty() && steps_.back().rows.append(work)) return;
    steps_.push_back({std::move(work), nullptr});
  }

  // The rows that the operations before it compute one by one are prepared in the same go.
  void add(LinearWork work) {
    if (!steps_.empty() && steps_.back().rows.rows == work.rows) {
      work.before = std::move(steps_.back().rows);
      steps_.pop_back();
    }
    add([work = std::move(work)] { run_linear(work); });
  }

  void replay() const {
    for (const Step& step : steps_)
      if (step.kernel) step.kernel();
      else run_rows(step.rows);
  }

 private:
  // Either of them.
  struct Step {
    RowWork rows;
    std::function<void()> kernel;
  };

  std::vector<Step> steps_;
};

}  // namespace hagane
