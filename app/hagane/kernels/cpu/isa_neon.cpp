// Every kernel for ARM's NEON with dot products of bytes.
#include "ops.h"

#include <cmath>
#include <utility>

// Clang has no such pragma as below; other systems have no such detection.
#if defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
#include <arm_neon.h>

// After the headers: what they define stays runnable everywhere.
#pragma GCC target("arch=armv8.2-a+dotprod")

#define HAGANE_NEON

namespace hagane {
namespace {

#include "lanes.inc"
#include "grouped.inc"
#include "hadamard.inc"
#include "quantize.inc"

#include "attention.inc"
#include "elementwise.inc"
#include "experts.inc"
#include "latent.inc"
#include "activation.inc"
#include "store.inc"
#include "training.inc"
#include "pretraining.inc"
#include "sampling.inc"
#include "linear.inc"
#include "tiles.inc"
#include "linear_neon.inc"
#include "lora.inc"
#include "attention_training.inc"
#include "table.inc"

constexpr Kernels kKernels = table_of<linear_neon, paged_attention>("neon");

}  // namespace

const Kernels* neon_kernels() { return &kKernels; }

}  // namespace hagane

#else

namespace hagane {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace hagane
#endif
