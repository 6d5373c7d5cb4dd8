#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sam2 {

// Label the 8-connected components of `images` masks of height x width bytes each, foreground where a byte is not 0.
// All pointers are device memory of images * height * width elements. `labels` receives 0 on the background and
// elsewhere 1 + the index within its image of the component's first pixel in reading order; `areas`, zeroed by the
// caller, receives each pixel's component's size. height * width must fit 31 bits. Work is queued on `stream`.
cudaError_t label_components(const std::uint8_t* mask, std::int32_t* labels, std::int32_t* areas, std::int64_t images,
                             std::int64_t height, std::int64_t width, cudaStream_t stream);

}  // namespace sam2
