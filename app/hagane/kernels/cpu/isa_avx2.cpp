// Every kernel for AVX2 and FMA.
#include "ops.h"

#include <cmath>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>

// After the headers: what they define stays runnable everywhere.
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")

#define HAGANE_AVX2

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
#include "linear_avx2.inc"
#include "lora.inc"
#include "attention_training.inc"
#include "table.inc"

constexpr Kernels kKernels = table_of<linear_avx2, paged_attention>("avx2");

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace hagane

#else

namespace hagane {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace hagane
#endif
