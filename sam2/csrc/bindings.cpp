// sam2._C: the compiled, optional part of the package.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <vector>

#include "connected_components.h"

namespace {

std::vector<at::Tensor> get_connected_components(const at::Tensor& mask) {
  TORCH_CHECK_VALUE(mask.dim() == 4 && mask.size(1) == 1, "mask must be (N, 1, H, W), got ", mask.sizes());
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kByte, "mask must be uint8, got ", mask.scalar_type());
  TORCH_CHECK_VALUE(mask.is_cuda(), "mask must be on a CUDA device, got ", mask.device());
  TORCH_CHECK_VALUE(mask.size(2) * mask.size(3) <= std::numeric_limits<std::int32_t>::max(),
                    "mask must have fewer than 2^31 pixels per image, got ", mask.sizes());
  const c10::cuda::CUDAGuard device(mask.device());
  const at::Tensor dense = mask.contiguous();
  at::Tensor labels = at::empty(mask.sizes(), mask.options().dtype(at::kInt));
  at::Tensor areas = at::zeros(mask.sizes(), mask.options().dtype(at::kInt));
  C10_CUDA_CHECK(sam2::label_components(dense.const_data_ptr<std::uint8_t>(), labels.mutable_data_ptr<std::int32_t>(),
                                        areas.mutable_data_ptr<std::int32_t>(), mask.size(0), mask.size(2),
                                        mask.size(3), c10::cuda::getCurrentCUDAStream()));
  return {labels, areas};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  // The misspelt name is upstream's, and callers use it.
  m.def("get_connected_componnets", &get_connected_components, pybind11::arg("mask"),
        "8-connected components of a (N, 1, H, W) uint8 CUDA mask: [labels, areas], both int32.");
}
