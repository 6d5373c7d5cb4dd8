// Runs the kernel's own steps, sam2/csrc/union_find.h, in CPU threads: the same code and the same races, without a GPU.

#include <cstdint>
#include <thread>
#include <vector>

namespace {

// A few cores would seldom interleave steps this short, so now and then a thread stands back before it reads.
void sometimes_yield() {
  thread_local std::uint32_t state = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(&state));
  state = state * 1664525u + 1013904223u;
  if (state >> 28 == 0) std::this_thread::yield();
}

}  // namespace

#define __atomic_load_n(...) (sometimes_yield(), __atomic_load_n(__VA_ARGS__))
#include "union_find.h"

namespace {

// Calls step(pixel) for every pixel of `order`, shared out over threads that all start together, and waits for them.
template <typename Step>
void run_phase(const std::vector<sam2::Node>& order, int threads, Step step) {
  std::vector<std::thread> workers;
  for (int worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      for (std::size_t i = worker; i < order.size(); i += threads) step(order[i]);
    });
  }
  for (auto& worker : workers) worker.join();
}

}  // namespace

// One mask of `pixels` bytes, visited in the given order of pixel numbers; `areas` must come zeroed.
extern "C" void label_on_host(const std::uint8_t* mask, std::int32_t* labels, std::int32_t* areas,
                              const std::int32_t* pixel_order, std::int32_t pixels, std::int32_t width, int threads) {
  const std::vector<sam2::Node> order(pixel_order, pixel_order + pixels);
  run_phase(order, threads, [=](sam2::Node pixel) { sam2::plant(mask, labels, pixel); });
  run_phase(order, threads, [=](sam2::Node pixel) { sam2::merge(mask, labels, pixel, width); });
  run_phase(order, threads, [=](sam2::Node pixel) {
    const sam2::Node root = sam2::settle(labels, pixel);
    if (root != 0) __atomic_fetch_add(areas + root - 1, 1, __ATOMIC_RELAXED);
  });
  run_phase(order, threads, [=](sam2::Node pixel) { sam2::spread(labels, areas, pixel); });
}
