// Observers for C++: they watch tensors and choose a scale and zero point. Used by C++ programs that calibrate or
// train; the arithmetic is that of the observer ops (ops/observe.h).
//
// State lies on the device of the first tensor observed and is written there; only observed() and nonfinite() read it
// back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "export.h"

namespace torchquant::observers {

struct ObserverOptions {
  int64_t quant_min = 0;
  int64_t quant_max = 255;
  bool symmetric = false;
  // One range per index of this axis; one for the tensor when empty.
  std::optional<int64_t> axis;
};

class TQ_API Observer {
 public:
  virtual ~Observer() = default;

  // x: float32, bfloat16 or float16. Non-finite values are counted and otherwise ignored.
  void observe(const at::Tensor& x);

  // Takes in what `other`, of the same class, options and shapes, saw.
  void merge(const Observer& other);

  // Raises c10::Error unless observed().
  std::tuple<at::Tensor, at::Tensor> calculate_qparams() const;

  // Whether every channel saw a finite value.
  bool observed() const;
  // NaN and infinite values met.
  int64_t nonfinite() const;

  void reset() { state_.clear(); }

  // Tensors by name, empty before the first observation; not copies.
  const std::map<std::string, at::Tensor>& state() const { return state_; }
  // Takes copies of the state that an observer of the same class and options had.
  void load_state(const std::map<std::string, at::Tensor>& state);

 protected:
  explicit Observer(ObserverOptions options) : options_(options) {}

  const at::Tensor& tensor(const char* name) const { return state_.at(name); }
  const ObserverOptions& options() const { return options_; }

  virtual const char* name() const = 0;
  // The state before anything was seen, beside min_val, max_val and nonfinite_count; `like` is min_val.
  virtual std::map<std::string, at::Tensor> initial_state(const at::Tensor& like) const = 0;
  virtual void update(const at::Tensor& x) = 0;
  virtual void merge_state(const Observer& other) = 0;
  virtual std::tuple<at::Tensor, at::Tensor> qparams() const = 0;

 private:
  void allocate(const at::Tensor& x);

  ObserverOptions options_;
  std::map<std::string, at::Tensor> state_;
};

// The smallest and the largest value ever seen. Merging is exact.
class TQ_API MinMaxObserver : public Observer {
 public:
  explicit MinMaxObserver(ObserverOptions options = {}) : Observer(options) {}

 protected:
  const char* name() const override { return "MinMaxObserver"; }
  std::map<std::string, at::Tensor> initial_state(const at::Tensor& like) const override;
  void update(const at::Tensor& x) override;
  void merge_state(const Observer& other) override;
  std::tuple<at::Tensor, at::Tensor> qparams() const override;
};

// Moving average of each tensor's smallest and largest value; `averaging_constant` is the weight of the newest, in (0,
// 1].
class TQ_API MovingAverageMinMaxObserver : public Observer {
 public:
  explicit MovingAverageMinMaxObserver(ObserverOptions options = {}, double averaging_constant = 0.01)
      : Observer(options), averaging_constant_(averaging_constant) {}

 protected:
  const char* name() const override { return "MovingAverageMinMaxObserver"; }
  std::map<std::string, at::Tensor> initial_state(const at::Tensor& like) const override;
  void update(const at::Tensor& x) override;
  void merge_state(const Observer& other) override;
  std::tuple<at::Tensor, at::Tensor> qparams() const override;

 private:
  double averaging_constant_;
};

// Which range a HistogramObserver takes: ops/observe.h says what each one minimizes.
enum class HistogramSearch { kPercentile, kMse, kEntropy };

struct HistogramOptions {
  HistogramSearch search = HistogramSearch::kMse;
  int64_t bins = 4096;
  double percentile = 99.99;  // for kPercentile
};

// Counts values in bins that widen with the range, in constant memory, and clips what costs more than it is worth.
// Merging is exact.
class TQ_API HistogramObserver : public Observer {
 public:
  explicit HistogramObserver(ObserverOptions options = {}, HistogramOptions histogram = {})
      : Observer(options), histogram_(histogram) {}

 protected:
  const char* name() const override { return "HistogramObserver"; }
  std::map<std::string, at::Tensor> initial_state(const at::Tensor& like) const override;
  void update(const at::Tensor& x) override;
  void merge_state(const Observer& other) override;
  std::tuple<at::Tensor, at::Tensor> qparams() const override;

 private:
  HistogramOptions histogram_;
};

}  // namespace torchquant::observers
