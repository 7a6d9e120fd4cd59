// Every kernel for AVX-512 with VNNI, and AMX tiles of int8 and bf16.
#include "ops.h"

#include <cmath>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>

// After the headers: what they define stays runnable everywhere.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma,bmi,bmi2")

// GCC's own macros are not set by the pragma.
#define HAGANE_AVX512
#define HAGANE_BF16

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
#include "linear_vnni.inc"
#include "linear_amx.inc"
#include "lora.inc"
#include "attention_spans.inc"
#include "attention_int8.inc"
#include "attention_amx.inc"
#include "attention_training.inc"
#include "table.inc"

constexpr auto kAttention = paged_attention_spans<CodeMultiplier, paged_attention_spans<TileMultiplier, paged_attention>>;
constexpr Kernels kKernels = table_of<linear_amx, kAttention>("amx");

}  // namespace

const Kernels* amx_kernels() { return &kKernels; }

}  // namespace hagane

#else

namespace hagane {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace hagane
#endif
