// Plans by program, constants and shapes; see plan_cache.h.
#include "ops/island/plan_cache.h"

#include <ATen/Parallel.h>
#include <c10/core/TensorImpl.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "kernels/isa.h"

namespace torchquant::island {
namespace {

// Recognizes a tensor and what is in it without keeping its memory alive. The weak references keep the addresses from
// being used again.
class ConstantMark {
 public:
  explicit ConstantMark(const at::Tensor& tensor)
      : tensor_(tensor.getIntrusivePtr()),
        storage_(tensor.storage().getWeakStorageImpl()),
        address_(tensor.unsafeGetTensorImpl()),
        storage_address_(tensor.storage().unsafeGetStorageImpl()),
        version_(version_of(tensor)) {}

  bool fits(const at::Tensor& tensor) const {
    return tensor.unsafeGetTensorImpl() == address_ && tensor.storage().unsafeGetStorageImpl() == storage_address_ &&
           version_of(tensor) == version_;
  }

 private:
  // Inference tensors count no writes.
  static uint32_t version_of(const at::Tensor& tensor) { return tensor.is_inference() ? 0 : tensor._version(); }

  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor_;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  const c10::TensorImpl* address_;
  const c10::StorageImpl* storage_address_;
  uint32_t version_;
};

// What a plan depends on besides program and constants.
class ShapeKey {
 public:
  ShapeKey(const Operands& operands, int threads) : threads_(threads), isa_(kernels::selected_isa()) {
    for (const at::Tensor& input : operands.inputs) {
      inputs_.push_back({input.scalar_type(), input.sizes().vec(), input.strides().vec()});
    }
    for (const c10::SymInt& size : operands.sizes) sizes_.push_back(size.expect_int());
  }

  bool fits(const Operands& operands, int threads) const {
    return threads == threads_ && kernels::selected_isa() == isa_ && operands.inputs.size() == inputs_.size() &&
           std::equal(inputs_.begin(), inputs_.end(), operands.inputs.begin(),
                      [](const Input& key, const at::Tensor& input) {
                        return key.dtype == input.scalar_type() && input.sizes() == key.sizes &&
                               input.strides() == key.strides;
                      }) &&
           std::equal(sizes_.begin(), sizes_.end(), operands.sizes.begin(), operands.sizes.end(),
                      [](int64_t key, const c10::SymInt& size) { return size == key; });
  }

 private:
  struct Input {
    at::ScalarType dtype;
    std::vector<int64_t> sizes, strides;
  };

  int threads_;
  kernels::Isa isa_;
  std::vector<Input> inputs_;
  std::vector<int64_t> sizes_;
};

// The plans of one program with its constants.
class PlannedProgram {
 public:
  PlannedProgram(std::string_view text, at::TensorList constants) : text_(text), program_(Program::parse(text)) {
    for (const at::Tensor& constant : constants) marks_.emplace_back(constant);
  }

  bool has_text(std::string_view text) const { return text_ == text; }

  bool is_current(at::TensorList constants) const {
    return std::equal(marks_.begin(), marks_.end(), constants.begin(), constants.end(),
                      [](const ConstantMark& mark, const at::Tensor& constant) { return mark.fits(constant); });
  }

  std::shared_ptr<const BatchPlan> find(const Operands& operands, int threads) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(plans_.begin(), plans_.end(),
                                    [&](const auto& entry) { return entry.first.fits(operands, threads); });
    if (found != plans_.end()) {
      std::rotate(plans_.begin(), found, found + 1);  // the latest comes first
      return plans_.front().second;
    }
    plans_.insert(plans_.begin(), {ShapeKey(operands, threads), make_plan(operands, threads)});
    if (plans_.size() > kMostPlans) plans_.pop_back();
    return plans_.front().second;
  }

 private:
  // Shapes that come in turn, as batches of several sizes do; each has memory of its own.
  static constexpr size_t kMostPlans = 8;

  // A plan that cannot be made is no error: the interpreter raises the one that the user should see.
  std::shared_ptr<const BatchPlan> make_plan(const Operands& operands, int threads) {
    try {
      return BatchPlan::make(program_, operands, threads);
    } catch (const c10::Error&) {
      return nullptr;
    }
  }

  std::string text_;
  Program program_;
  std::vector<ConstantMark> marks_;
  std::mutex mutex_;
  std::vector<std::pair<ShapeKey, std::shared_ptr<const BatchPlan>>> plans_;
};

// Hangs on a constant. Several islands may read the same one.
struct PlannedPrograms final : c10::BackendMeta {
  // Copies of the tensor's metadata belong to other tensors, whose islands have other constants.
  c10::intrusive_ptr<c10::BackendMeta> clone(const c10::intrusive_ptr<c10::BackendMeta>& /*ptr*/) const override {
    return c10::make_intrusive<PlannedPrograms>();
  }

  std::vector<std::shared_ptr<PlannedProgram>> programs;
};

// Guards what hangs on tensors: two threads may meet there at the first call.
std::mutex& attachment_mutex() {
  static std::mutex mutex;
  return mutex;
}

PlannedPrograms& programs_on(const at::Tensor& tensor) {
  c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (auto* attached = dynamic_cast<PlannedPrograms*>(impl->get_backend_meta())) return *attached;
  auto programs = c10::make_intrusive<PlannedPrograms>();
  impl->set_backend_meta(programs);
  return *programs;
}

std::shared_ptr<PlannedProgram> find_program(std::string_view text, at::TensorList constants,
                                             const at::Tensor& holder) {
  const std::lock_guard lock(attachment_mutex());
  auto& programs = programs_on(holder).programs;
  const auto found = std::find_if(programs.begin(), programs.end(), [&](const auto& p) { return p->has_text(text); });
  if (found != programs.end() && (*found)->is_current(constants)) return *found;
  if (found != programs.end()) programs.erase(found);
  programs.push_back(std::make_shared<PlannedProgram>(text, constants));
  return programs.back();
}

bool can_be_planned(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_conj() &&
         !tensor.is_neg();
}

}  // namespace

std::shared_ptr<const BatchPlan> find_plan(std::string_view program, const Operands& operands) {
  if (!std::all_of(operands.inputs.begin(), operands.inputs.end(), can_be_planned) ||
      !std::all_of(operands.constants.begin(), operands.constants.end(), can_be_planned) ||
      !std::all_of(operands.sizes.begin(), operands.sizes.end(),
                   [](const auto& size) { return !size.is_symbolic(); })) {
    return nullptr;
  }
  // Scales and multipliers; packed weights of single ops hang on the weights.
  const auto holder = std::find_if(operands.constants.begin(), operands.constants.end(),
                                   [](const at::Tensor& constant) { return constant.is_floating_point(); });
  if (holder == operands.constants.end()) return nullptr;
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return find_program(program, operands.constants, *holder)->find(operands, threads);
}

}  // namespace torchquant::island
