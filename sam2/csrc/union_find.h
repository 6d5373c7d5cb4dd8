// Connected components by union-find, one step per pixel.
//
// Every foreground pixel is a node. A node is known by its 1-based row-major index within its own image, so that 0 can
// mean background, and `parents[node - 1]` is its parent. A root is its own parent. Parents only ever decrease, which is
// why the steps of one phase may run in any order and at the same time, and why the root of a finished component is its
// first pixel in reading order. Phases (all pixels of one before any of the next): plant, merge, settle, spread.
//
// The same functions run on the GPU (connected_components.cu) and, for tests, in threads on the CPU.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SAM2_ANYWHERE __host__ __device__ __forceinline__
#else
#define SAM2_ANYWHERE inline
#endif

namespace sam2 {

using Node = std::int32_t;

// Other threads may be lowering the value: read it from memory, not from a register or a stale cache line.
SAM2_ANYWHERE Node load(const Node* address) {
#ifdef __CUDA_ARCH__
  return *static_cast<const volatile Node*>(address);
#else
  return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
}

SAM2_ANYWHERE void store(Node* address, Node value) {
#ifdef __CUDA_ARCH__
  *static_cast<volatile Node*>(address) = value;
#else
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
#endif
}

// Lower `*address` to `value` if that is less; returns what stood there before.
SAM2_ANYWHERE Node fetch_min(Node* address, Node value) {
#ifdef __CUDA_ARCH__
  return atomicMin(address, value);
#else
  Node seen = load(address);
  while (value < seen && !__atomic_compare_exchange_n(address, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return seen;
#endif
}

SAM2_ANYWHERE Node find_root(const Node* parents, Node node) {
  Node parent = load(parents + node - 1);
  while (parent != node) {
    node = parent;
    parent = load(parents + node - 1);
  }
  return node;
}

// Put two foreground nodes into one tree.
SAM2_ANYWHERE void unite(Node* parents, Node a, Node b) {
  while (true) {
    a = find_root(parents, a);
    b = find_root(parents, b);
    if (a == b) return;
    const Node high = a > b ? a : b;
    const Node low = a > b ? b : a;
    const Node before = fetch_min(parents + high - 1, low);
    if (before == high) return;
    // `high` had been hung below another node meanwhile. That link may just have been replaced by ours, so the node
    // that it led to still has to be joined with `low`.
    a = before;
    b = low;
  }
}

SAM2_ANYWHERE void plant(const std::uint8_t* mask, Node* parents, Node pixel) {
  parents[pixel] = mask[pixel] ? pixel + 1 : 0;
}

// Join a pixel with the neighbours before it in reading order. Those that touch each other were or will be joined by
// their own steps, so one link to each group that is separate among them is enough.
SAM2_ANYWHERE void merge(const std::uint8_t* mask, Node* parents, Node pixel, std::int32_t width) {
  if (!mask[pixel]) return;
  const Node node = pixel + 1;
  const std::int32_t x = pixel % width;
  const bool has_left = x > 0;
  const bool has_right = x + 1 < width;
  const bool has_above = pixel >= width;
  if (has_above && mask[pixel - width]) {  // touches left, above left and above right
    unite(parents, node, node - width);
    return;
  }
  if (has_left && mask[pixel - 1]) {  // touches above left
    unite(parents, node, node - 1);
  } else if (has_above && has_left && mask[pixel - width - 1]) {
    unite(parents, node, node - width - 1);
  }
  if (has_above && has_right && mask[pixel - width + 1]) unite(parents, node, node - width + 1);
}

// Point a pixel at its root, which is from then on its label; returns it (0 on the background).
SAM2_ANYWHERE Node settle(Node* parents, Node pixel) {
  const Node parent = load(parents + pixel);
  if (parent == 0) return 0;
  const Node root = find_root(parents, parent);
  store(parents + pixel, root);
  return root;
}

// Copy the area counted at the root to a pixel. Roots are only read here, the others only written.
SAM2_ANYWHERE void spread(const Node* labels, std::int32_t* areas, Node pixel) {
  const Node root = labels[pixel];
  if (root != 0 && root != pixel + 1) areas[pixel] = areas[root - 1];
}

}  // namespace sam2
