// A device for torch that computes on the processor, in memory that counts as its own: see accelerator.py.
//
// Every operation runs as the processor's, over the same memory; one that is given tensors of both devices is refused, as a
// graphics card refuses it. Only what makes tensors, views them or copies between devices is written out here.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <cstring>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);
const c10::DispatchKeySet KEY(c10::DispatchKey::PrivateUse1);
using Sizes = c10::IntArrayRef;
using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Pinned = std::optional<bool>;

// ---- memory, streams and the rest that torch asks of a device ---------------------------------------------------------------

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = size ? c10::alloc_cpu(size) : nullptr;
    return {data, data, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
} memory;
REGISTER_ALLOCATOR(KIND, &memory);

const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const override { return STREAM; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto fresh = memory.allocate(size);
    if (storage.nbytes() && size) std::memcpy(fresh.get(), storage.data(), std::min(storage.nbytes(), size));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
} hooks;

// ---- tensors: made, viewed, copied ------------------------------------------------------------------------------------------

at::Tensor empty(Sizes size, Type type, Layout, Device, Pinned, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEY, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(Sizes size, Sizes stride, Type type, Layout, Device, Pinned) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEY, c10::dtype_or_default(type));
}

// A tensor of the processor over the same memory.
at::Tensor here(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != KIND) return tensor;
  c10::InferenceMode off(false);
  c10::DataPtr data(tensor.storage().mutable_data(), c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(data), nullptr, false);
  c10::DispatchKeySet key(c10::DispatchKey::CPU);
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), key, tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

// A copy of a tensor of the processor.
at::Tensor there(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() == KIND) return tensor;
  auto source = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
  auto made = empty_strided(source.sizes(), source.strides(), source.scalar_type(), {}, {}, {});
  here(made).copy_(source);
  return made;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  here(to).copy_(here(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  at::native::resize_(to, self.sizes());
  return copy_from(self, to, false);
}

at::Scalar scalar(const at::Tensor& self) { return at::_local_scalar_dense(here(self)); }

const at::Tensor& resized(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor& set_storage_at(at::Tensor& self, at::Storage source, int64_t offset, Sizes size, Sizes stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

// ---- operations --------------------------------------------------------------------------------------------------------------

// Numbers, indices and copies may be of either device.
void refuse_a_mixture(const std::string& name, at::ArrayRef<c10::IValue> inputs) {
  bool mine = false, other = false;
  auto look = [&](const at::Tensor& tensor) {
    if (tensor.defined()) (tensor.device().type() == KIND ? mine : other) |= tensor.device().type() == KIND || tensor.dim() > 0;
  };
  for (const auto& input : inputs) {
    if (input.isTensor()) look(input.toTensor());
    if (input.isTensorList()) for (const auto& tensor : input.toTensorVector()) look(tensor);
  }
  bool free = name.find("index") != std::string::npos || name.find("copy") != std::string::npos;
  TORCH_CHECK(free || !mine || !other, "Expected all tensors to be on the same device, but found two in ", name);
}

// An argument as the processor's; what is written to and empty is resized, for which it needs memory of its own.
c10::IValue brought(const c10::IValue& input, const c10::Argument& argument) {
  if (input.isTensor()) {
    const auto& tensor = input.toTensor();
    bool written = argument.alias_info() && argument.alias_info()->isWrite();
    if (written && tensor.defined() && tensor.numel() == 0) return at::empty({0}, tensor.options().device(c10::kCPU));
    return here(tensor);
  }
  if (input.isTensorList()) {
    c10::List<at::Tensor> made;
    for (const auto& tensor : input.toTensorVector()) made.push_back(here(tensor));
    return made;
  }
  if (input.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> made;
    for (const std::optional<at::Tensor>& tensor : input.toOptionalTensorList()) {
      made.push_back(tensor ? std::optional<at::Tensor>(here(*tensor)) : std::nullopt);
    }
    return made;
  }
  return input.isDevice() ? c10::IValue(c10::Device(c10::kCPU)) : input;
}

// A result as this device's: the argument that was written to, or a copy.
c10::IValue returned(const c10::IValue& output, const c10::Argument& result, const c10::FunctionSchema& schema,
                     const std::vector<c10::IValue>& inputs) {
  for (size_t i = 0; result.alias_info() && i < inputs.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (!alias || !alias->isWrite() || alias->beforeSets() != result.alias_info()->beforeSets()) continue;
    const auto& written = inputs[i].toTensor();
    if (output.toTensor().sizes() != written.sizes()) copy_from_and_resize(output.toTensor(), written);
    return inputs[i];
  }
  if (output.isTensor()) return there(output.toTensor());
  if (!output.isTensorList()) return output;
  c10::List<at::Tensor> made;
  for (const auto& tensor : output.toTensorVector()) made.push_back(there(tensor));
  return made;
}

void on_the_processor(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto given = torch::jit::last(stack, schema.arguments().size());
  const std::vector<c10::IValue> inputs(given.begin(), given.end());
  refuse_a_mixture(schema.operator_name().name, inputs);
  torch::jit::drop(*stack, inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) stack->push_back(brought(inputs[i], schema.arguments()[i]));
  op.callBoxed(stack);
  const size_t first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); i++) {
    (*stack)[first + i] = returned((*stack)[first + i], schema.returns()[i], schema, inputs);
  }
}

// ---- products ----------------------------------------------------------------------------------------------------------------

// A tensor as the processor's, halves in single precision: graphics cards accumulate their products so too, and processors take
// several times as long for products of halves.
at::Tensor wide(const at::Tensor& tensor) {
  const auto found = here(tensor);
  return found.defined() && found.scalar_type() == at::kHalf ? found.to(at::kFloat) : found;
}

void check_alike(const std::string& name, at::TensorList tensors) {
  refuse_a_mixture(name, std::vector<c10::IValue>(tensors.begin(), tensors.end()));
  for (const auto& tensor : tensors) {
    TORCH_CHECK(tensor.scalar_type() == tensors[0].scalar_type(), "expected one type, but found two in ", name);
  }
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b) {
  check_alike("mm", {a, b});
  return there(at::mm(wide(a), wide(b)).to(a.scalar_type()));
}

at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) {
  check_alike("bmm", {a, b});
  return there(at::bmm(wide(a), wide(b)).to(a.scalar_type()));
}

at::Tensor addmm(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta, const at::Scalar& alpha) {
  check_alike("addmm", {a, b, c});
  return there(at::addmm(wide(c), wide(a), wide(b), beta, alpha).to(a.scalar_type()));
}

at::Tensor baddbmm(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta, const at::Scalar& alpha) {
  check_alike("baddbmm", {a, b, c});
  return there(at::baddbmm(wide(c), wide(a), wide(b), beta, alpha).to(a.scalar_type()));
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Sizes stride,
                       Sizes padding, Sizes dilation, bool transposed, Sizes output_padding, int64_t groups) {
  check_alike("convolution", {x, weight});
  const auto b = bias ? std::optional<at::Tensor>(wide(*bias)) : std::nullopt;
  const auto made = at::convolution(wide(x), wide(weight), b, stride, padding, dilation, transposed, output_padding, groups);
  return there(made.to(x.scalar_type()));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight, Sizes stride, Sizes padding, Sizes dilation,
    bool transposed, Sizes output_padding, int64_t groups, std::array<bool, 3> mask) {
  const std::vector<int64_t> bias{weight.size(transposed ? 1 : 0)};
  auto [a, b, c] = at::convolution_backward(
      wide(gradient), wide(x), wide(weight), bias, stride, padding, dilation, transposed, output_padding, groups, mask);
  auto back = [&](const at::Tensor& made) { return made.defined() ? there(made.to(x.scalar_type())) : made; };
  return {back(a), back(b), back(c)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_processor>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &scalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resized);
  m.impl("set_.source_Storage_storage_offset", &set_storage_at);
  m.impl("mm", &mm);
  m.impl("bmm", &bmm);
  m.impl("addmm", &addmm);
  m.impl("baddbmm", &baddbmm);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define WHOLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  LOWER(conv2d) LOWER(linear) LOWER(matmul) LOWER(mm) LOWER(bmm) LOWER(addmm) LOWER(baddbmm) LOWER(einsum)
  LOWER(scaled_dot_product_attention) WHOLE(layer_norm) WHOLE(group_norm) WHOLE(exp) WHOLE(mse_loss) WHOLE(pow, Tensor_Scalar)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { at::RegisterPrivateUse1HooksInterface(&hooks); }
