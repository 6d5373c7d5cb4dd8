// The phases of union_find.h as kernels: x counts the pixels of an image, y the images.

#include "connected_components.h"
#include "union_find.h"

#include <cooperative_groups.h>

#include <algorithm>

namespace sam2 {
namespace {

namespace cg = cooperative_groups;

constexpr unsigned kThreads = 256;
constexpr std::int64_t kMaxGridY = 65535;

struct Batch {
  std::int64_t images;
  std::int32_t pixels;  // of one image
  std::int32_t width;
};

// Calls step(offset of the image, pixel within it) for every pixel that is this thread's.
template <typename Step>
__device__ __forceinline__ void for_own_pixels(const Batch& batch, Step step) {
  const std::int64_t pixel = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= batch.pixels) return;
  for (std::int64_t image = blockIdx.y; image < batch.images; image += gridDim.y) {
    step(image * batch.pixels, Node(pixel));
  }
}

// Add one to `count`. Neighbouring threads mostly mean the same one, of a large component: one of them adds for all.
__device__ __forceinline__ void count_one(std::int32_t* count) {
#if __CUDA_ARCH__ >= 700
  const auto sharing = cg::labeled_partition(cg::coalesced_threads(), reinterpret_cast<std::uintptr_t>(count));
  if (sharing.thread_rank() == 0) atomicAdd(count, std::int32_t(sharing.num_threads()));
#else
  atomicAdd(count, 1);
#endif
}

__global__ void plant_all(const std::uint8_t* mask, Node* parents, Batch batch) {
  for_own_pixels(batch, [=](std::int64_t image, Node pixel) { plant(mask + image, parents + image, pixel); });
}

__global__ void merge_all(const std::uint8_t* mask, Node* parents, Batch batch) {
  for_own_pixels(batch, [=](std::int64_t image, Node pixel) {
    merge(mask + image, parents + image, pixel, batch.width);
  });
}

__global__ void settle_and_count_all(Node* parents, std::int32_t* areas, Batch batch) {
  for_own_pixels(batch, [=](std::int64_t image, Node pixel) {
    const Node root = settle(parents + image, pixel);
    if (root != 0) count_one(areas + image + root - 1);
  });
}

__global__ void spread_all(const Node* labels, std::int32_t* areas, Batch batch) {
  for_own_pixels(batch, [=](std::int64_t image, Node pixel) { spread(labels + image, areas + image, pixel); });
}

}  // namespace

cudaError_t label_components(const std::uint8_t* mask, std::int32_t* labels, std::int32_t* areas, std::int64_t images,
                             std::int64_t height, std::int64_t width, cudaStream_t stream) {
  if (images == 0 || height == 0 || width == 0) return cudaSuccess;  // a grid may not be empty
  const Batch batch{images, std::int32_t(height * width), std::int32_t(width)};
  const dim3 grid((unsigned(batch.pixels) + kThreads - 1) / kThreads, unsigned(std::min(images, kMaxGridY)));
  plant_all<<<grid, kThreads, 0, stream>>>(mask, labels, batch);
  merge_all<<<grid, kThreads, 0, stream>>>(mask, labels, batch);
  settle_and_count_all<<<grid, kThreads, 0, stream>>>(labels, areas, batch);
  spread_all<<<grid, kThreads, 0, stream>>>(labels, areas, batch);
  return cudaGetLastError();
}

}  // namespace sam2
