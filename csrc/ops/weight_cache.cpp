// Keeps packed weights with their tensors, as the backend's part of the tensor's metadata. Called through
// weight_cache.h.
#include "ops/weight_cache.h"

#include <c10/core/TensorImpl.h>

#include <chrono>
#include <mutex>
#include <shared_mutex>
#include <utility>

namespace torchquant::ops {
namespace {

// A tensor's contents, as far as they can be told apart without reading them.
struct ContentId {
  const void* data;
  int64_t version;

  explicit ContentId(const at::Tensor& weight)
      : data(weight.const_data_ptr()), version(weight.is_inference() ? 0 : weight._version()) {}
  bool operator==(const ContentId&) const = default;
};

class WeightMeta final : public c10::BackendMeta {
 public:
  // Copies of the tensor's metadata belong to tensors that may be written to by themselves: they start empty.
  c10::intrusive_ptr<c10::BackendMeta> clone(const c10::intrusive_ptr<c10::BackendMeta>& /*ptr*/) const override {
    return c10::make_intrusive<WeightMeta>();
  }

  std::shared_ptr<const CachedWeight> find_or_make(const at::Tensor& weight, const WeightKey& key,
                                                   detail::MakeCached make, void* context) {
    const ContentId content(weight);
    {
      const std::shared_lock lock(mutex_);
      for (const Entry& entry : entries_) {
        if (entry.key == key && entry.content == content) return entry.made;
      }
    }
    const std::unique_lock lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.key == key && entry.content == content) return entry.made;
    }
    std::erase_if(entries_, [&](const Entry& entry) { return !(entry.content == content); });
    const auto start = std::chrono::steady_clock::now();
    std::shared_ptr<const CachedWeight> made = make(context);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    entries_.push_back({key, content, made, time.count()});
    return made;
  }

  std::vector<PackedRecord> records() const {
    const std::shared_lock lock(mutex_);
    std::vector<PackedRecord> records;
    for (const Entry& entry : entries_)
      records.push_back({entry.made->kernel(), entry.made->bytes(), entry.milliseconds});
    return records;
  }

 private:
  struct Entry {
    WeightKey key;
    ContentId content;
    std::shared_ptr<const CachedWeight> made;
    double milliseconds;
  };

  mutable std::shared_mutex mutex_;
  std::vector<Entry> entries_;
};

// Guards the metadata pointers of all tensors, which Torch does not expect several threads to set.
std::shared_mutex& attach_mutex() {
  static std::shared_mutex mutex;
  return mutex;
}

// Undefined if the tensor carries none, or another backend's.
c10::intrusive_ptr<WeightMeta> attached(const at::Tensor& weight) {
  return c10::dynamic_intrusive_pointer_cast<WeightMeta>(
      weight.unsafeGetTensorImpl()->get_backend_meta_intrusive_ptr());
}

c10::intrusive_ptr<WeightMeta> find(const at::Tensor& weight) {
  const std::shared_lock lock(attach_mutex());
  return attached(weight);
}

c10::intrusive_ptr<WeightMeta> find_or_attach(const at::Tensor& weight) {
  if (auto meta = find(weight)) return meta;
  const std::unique_lock lock(attach_mutex());
  if (auto meta = attached(weight)) return meta;
  auto meta = c10::make_intrusive<WeightMeta>();
  weight.unsafeGetTensorImpl()->set_backend_meta(meta);
  return meta;
}

}  // namespace

std::shared_ptr<const CachedWeight> detail::find_or_make(const at::Tensor& weight, const WeightKey& key,
                                                         MakeCached make, void* context) {
  return find_or_attach(weight)->find_or_make(weight, key, make, context);
}

std::vector<PackedRecord> packed_records(const at::Tensor& weight) {
  const auto meta = find(weight);
  return meta ? meta->records() : std::vector<PackedRecord>{};
}

}  // namespace torchquant::ops
