#include "dispatch.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "low_rank.h"
#include "tasks.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
#include <sys/auxv.h>
#endif

namespace hagane {
namespace {

const Kernels* active = generic_kernels();

Upcoming upcoming;

// Rows (queries times heads) of one attention task: enough to reuse every key and value from the
// first-level cache, few enough to spread a prefill over many threads.
constexpr int64_t kAttentionRows = 128;

// In how many parts the heads that share a key are shared out to threads: where values are in the keys, few keys
// make for many products, and there may be fewer tasks than threads.
int64_t heads_apart(const Attention& a, int64_t queries) {
  if (a.values) return 1;
  int64_t tasks = 0;
  for (int64_t s = 0; s < a.sequences; ++s)
    tasks += a.kv_heads * ceil_div(a.query_starts[s + 1] - a.query_starts[s], queries);
  return std::clamp<int64_t>(Pool::instance().threads() / std::max<int64_t>(1, tasks), 1, a.heads / a.kv_heads);
}

#if defined(__x86_64__)
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  constexpr unsigned kVectorBf16 = 1u << 5;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kVectorBf16)) return false;
  // Linux saves the tiles only for processes that asked (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx_vnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
#elif defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
// The bits of Linux' asm/hwcap.h: of older headers some are missing.
bool has_neon() { return getauxval(AT_HWCAP) & (1ul << 20); }

bool has_neon_i8mm() { return has_neon() && (getauxval(AT_HWCAP2) & (1ul << 13)); }

bool has_neon_bf16() { return has_neon_i8mm() && (getauxval(AT_HWCAP2) & (1ul << 14)); }
#endif

}  // namespace

const Kernels* find_kernels(const char* name) {
  std::vector<const Kernels*> usable;
#if defined(__x86_64__)
  if (has_avx512() && has_amx()) usable.push_back(amx_kernels());
  if (has_avx512_bf16()) usable.push_back(avx512_bf16_kernels());
  if (has_avx512()) usable.push_back(avx512_kernels());
  if (has_avx_vnni()) usable.push_back(avx_vnni_kernels());
  if (has_avx2()) usable.push_back(avx2_kernels());
#elif defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
  if (has_neon_bf16()) usable.push_back(neon_bf16_kernels());
  if (has_neon_i8mm()) usable.push_back(neon_i8mm_kernels());
  if (has_neon()) usable.push_back(neon_kernels());
#endif
  usable.push_back(generic_kernels());
  for (const Kernels* kernels : usable)
    if (kernels && (!name || !std::strcmp(kernels->name, name))) return kernels;
  return nullptr;
}

void use_kernels(const Kernels* kernels) { active = kernels; }

const Kernels* active_kernels() { return active; }

void run_rows(const RowWork& work) { split(work.rows, work.bytes, work); }

void run_linear(const LinearWork& work) {
  static thread_local Scratch row_scratch, scale_scratch, offset_scratch;
  static thread_local ChangedRows changed;
  const Weight& weight = *work.weight;
  const int64_t rows = work.rows;
  const int64_t item = weight.input_bytes(), stride = input_stride(weight);
  const int64_t padded = round_up(rows, 16);
  std::byte* prepared = row_scratch.get<std::byte>(padded * stride * item);
  float* scale = scale_scratch.get<float>(padded * weight.input_scales());
  int32_t* offsets = offset_scratch.get<int32_t>(padded * weight.input_sums());
  std::memset(prepared + rows * stride * item, 0, (padded - rows) * stride * item);
  Linear call{weight, {prepared, rows, stride, scale, offsets}, work.out, work.residual};
  if (!upcoming.empty()) call.upcoming = &upcoming;
  if (work.bank) changed.group(*work.bank, work.slots, rows, stride * item);
  // A thread-local object would be another one inside the workers.
  ChangedRows* const changes = work.bank && changed.any() ? &changed : nullptr;
  split(rows, work.before.bytes + weight.in * 4, [&, changes](int64_t row) {
    work.before(row);
    active->prepare(weight, work.x, row, prepared, stride, scale, offsets);
    if (changes) changes->take(weight, call.x, row);
  });
  if (changes) changes->shrink(*active, stride);
  // A pass over the weights costs their bytes; further rows cost arithmetic on top.
  Pool& pool = Pool::instance();
  int64_t block_bytes = weight.units * 64 * std::max<int64_t>(1, rows / 4);
  int64_t least = ceil_div(kBytesWorthATask, block_bytes);
  int64_t chunk = std::max(least, ceil_div(weight.blocks(), pool.threads() * kTasksPerThread));
  pool.run(ceil_div(weight.blocks(), chunk), [&, changes](int64_t task) {
    const int64_t first = task * chunk, last = std::min(weight.blocks(), first + chunk);
    if (changes) changes->multiply(*active, call, first, last);
    else active->linear(call, first, last);
  });
}

void run_heads(const HeadsWork& work) {
  static thread_local Scratch scratch;
  const Weight& first = *work.weights[0];
  const int64_t heads = static_cast<int64_t>(work.weights.size()), rows = work.rows, stride = input_stride(first);
  const int64_t used = rows * stride * first.input_bytes(), bytes = round_up(rows, 16) * stride * first.input_bytes();
  std::byte* const prepared = scratch.get<std::byte>(heads * bytes);
  for (int64_t head = 0; head < heads; ++head) std::memset(prepared + head * bytes + used, 0, bytes - used);
  auto from = [](const Matrix& m, int64_t column) {
    return Matrix{static_cast<std::byte*>(m.data) + column * (m.dtype == DType::f32 ? 4 : 2), m.dtype, m.stride};
  };
  split(rows * heads, first.in * 4, [&](int64_t index) {
    const int64_t head = index % heads;
    active->prepare(*work.weights[head], from(work.x, head * work.width), index / heads, prepared + head * bytes,
                    stride, nullptr, nullptr);
  });
  const int64_t block_bytes = first.units * 64 * std::max<int64_t>(1, rows / 4);
  const int64_t chunk = std::clamp<int64_t>(ceil_div(kBytesWorthATask, block_bytes), 1, first.blocks());
  const int64_t parts = ceil_div(first.blocks(), chunk);
  Pool::instance().run(heads * parts, [&](int64_t task) {
    const int64_t head = task / parts, block = task % parts * chunk;
    const Linear call{*work.weights[head], {prepared + head * bytes, rows, stride, nullptr, nullptr},
                      from(work.out, head * work.room), nullptr};
    active->linear(call, block, std::min(first.blocks(), block + chunk));
  });
}

RowWork norm_rows(const RowNorm& n) {
  return {n.rows, n.features * 4, {[=](int64_t row) { active->row_norm(n, row); }}};
}

RowWork activation_rows(const Activation& a) {
  return {a.rows, a.features * 8, {[=](int64_t row) { active->activate(a, row); }}};
}

RowWork scaled_add_rows(const ScaledAdd& s) {
  return {s.rows, s.features * 4, {[=](int64_t row) { active->scaled_add(s, row); }}};
}

void run_softcap(const Softcap& s) {
  split(s.rows, s.vocab * 16, [&](int64_t row) { active->softcap(s, row); });
}

RowWork silu_and_mul_rows(const Matrix& gate_up, int64_t rows, int64_t features, const Matrix& out) {
  return {rows, features * 8, {[=](int64_t row) { active->silu_and_mul(gate_up, features, out, row); }}};
}

RowWork rotary_rows(const Rotary& r) {
  return {r.tokens, (r.heads + r.kv_heads) * r.head_dim * 4,
          {[=](int64_t token) { active->rotary(r, token); }}};
}

RowWork latent_rows(const LatentHeads& l) {
  return {l.tokens, l.heads * (l.plain + l.rotated) * 16,
          {[=](int64_t token) { active->latent_heads(l, token); }}};
}

RowWork latent_key_rows(const LatentKeys& l) {
  return {l.tokens, (l.heads * l.rotated + l.rank) * 16, {[=](int64_t token) { active->latent_keys(l, token); }}};
}

RowWork narrow_rows(const NarrowHeads& n) {
  return {n.tokens, n.heads * n.features * 4, {[=](int64_t token) { active->narrow_heads(n, token); }}};
}

RowWork store_rows(const Store& s) {
  return {s.tokens, s.kv_heads * s.head_dim * 16, {[=](int64_t token) { active->store(s, token); }}};
}

void run_embed(const Weight& weight, const int64_t* ids, int64_t rows, const Matrix& out) {
  split(rows, weight.in * 16, [&](int64_t row) { active->embed(weight, ids, out, row); });
}

void run_gather(const Matrix& x, const int64_t* indices, int64_t rows, int64_t features, const Matrix& out) {
  const int64_t item = x.dtype == DType::f32 ? 4 : 2;
  split(rows, features * item, [&](int64_t row) {
    std::memcpy(static_cast<std::byte*>(out.data) + row * out.stride * item,
                static_cast<const std::byte*>(x.data) + indices[row] * x.stride * item, features * item);
  });
}

// The same for every instruction set: a few hundred values per step.
void run_rope_tables(const RopeTables& a) {
  split(a.tokens, a.count * 64, [&](int64_t token) {
    for (int64_t i = 0; i < a.count; ++i) {
      float angle = static_cast<float>(a.positions[token]) * a.frequencies[i];
      a.cos[token * a.count + i] = std::cos(angle) * a.magnitude;
      a.sin[token * a.count + i] = std::sin(angle) * a.magnitude;
    }
  });
}

void run_sample(const Sampling& d) {
  split(d.rows, d.vocab * 8, [&](int64_t row) { active->sample(d, row); });
}

void run_argmax(const Argmax& g) {
  split(g.rows, g.vocab * 4, [&](int64_t row) { active->argmax(g, row); });
}

void run_heaviest(const Heaviest& h) {
  split(h.rows, h.vocab * 8, [&](int64_t row) { active->heaviest(h, row); });
}

void run_restrict(const Restriction& r) {
  split(r.rows, r.vocab * 4, [&](int64_t row) { active->restrict_row(r, row); });
}

void run_rms_norm_backward(const Matrix& grad, const Matrix& x, const void* weight, float eps,
                           int64_t rows, int64_t features, const Matrix& out) {
  split(rows, features * 8, [&](int64_t row) {
    active->rms_norm_backward(grad, x, weight, eps, features, out, row);
  });
}

void run_silu_and_mul_backward(const Matrix& grad, const Matrix& gate_up, int64_t rows,
                               int64_t features, const Matrix& out) {
  split(rows, features * 16,
        [&](int64_t row) { active->silu_and_mul_backward(grad, gate_up, features, out, row); });
}

void run_rotary_backward(const Rotary& grad, const Matrix& before) {
  split(grad.tokens, (grad.heads + grad.kv_heads) * grad.head_dim * 8,
        [&](int64_t token) { active->rotary_backward(grad, before, token); });
}

void run_token_scores(const TokenScores& t) {
  split(t.rows, t.vocab * 16, [&](int64_t row) { active->token_score(t, row); });
}

void run_norm(const Norm& n) {
  split(n.rows, n.features * 4, [&](int64_t row) { active->norm(n, row); });
}

// Tasks and the order of sums do not depend on the threads: nor do the bits of the results.
void run_norm_backward(const NormBackward& n) {
  const int64_t parts = ceil_div(n.rows, NormBackward::kRows);
  split(parts, NormBackward::kRows * n.features * 8, [&](int64_t part) {
    const int64_t first = part * NormBackward::kRows;
    active->norm_backward(n, first, std::min(n.rows, first + NormBackward::kRows),
                          n.parts + part * n.features);
  });
  std::fill_n(n.weights, n.features, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < n.features; ++i) n.weights[i] += n.parts[part * n.features + i];
}

void run_sequence_attention(const SequenceAttention& a, bool backward) {
  auto* attention = backward ? active->sequence_attention_backward : active->sequence_attention;
  Pool::instance().run(a.sequences * a.kv_heads,
                       [&](int64_t task) { attention(a, task / a.kv_heads, task % a.kv_heads); });
}

void run_causal_softmax(const CausalSoftmax& s) {
  split(s.rows, s.keys * 16, [&](int64_t row) { active->causal_softmax(s, row); });
}

void run_prefetch(const Attention& a) {
  const int64_t item = a.cache_dtype == DType::f32 ? 4 : a.cache_dtype == DType::bf16 ? 2 : 1;
  const int64_t scale = a.cache_dtype == DType::int8 ? sizeof(float) : 0;
  const int64_t block_bytes = a.kv_heads * a.block_size * (a.head_dim * item + scale);
  upcoming.reset(block_bytes);
  for (int64_t s = 0; s < a.sequences; ++s)
    for (int64_t i = 0; i * a.block_size < a.context_lengths[s]; ++i)
      for (const void* cache : {a.keys, a.values})
        if (cache)
          upcoming.add(static_cast<const std::byte*>(cache) + a.block_tables[s * a.table_stride + i] * block_bytes);
}

void run_attention(const Attention& a) {
  upcoming.clear();
  static thread_local std::vector<AttentionTask> tasks;
  tasks.clear();
  const int64_t queries = std::max<int64_t>(1, kAttentionRows * a.kv_heads / a.heads);
  // A single query waits for memory, where the heads of a block lie one after the other.
  const int64_t wanted = kTasksPerThread * Pool::instance().threads();
  const int64_t heads = std::clamp<int64_t>(a.sequences * a.kv_heads / wanted, 1, a.kv_heads);
  const int64_t group = a.heads / a.kv_heads, parts = heads_apart(a, queries);
  for (int64_t s = 0; s < a.sequences; ++s) {
    int64_t length = a.query_starts[s + 1] - a.query_starts[s];
    const int64_t together = length == 1 ? heads : 1;
    for (int64_t first = 0; first < length; first += queries)
      for (int64_t h = 0; h < a.kv_heads; h += together)
        for (int64_t part = 0; part < parts; ++part)
          tasks.push_back({s, h, std::min(a.kv_heads, h + together), first, std::min(length, first + queries),
                           part * group / parts, (part + 1) * group / parts});
  }
  // A thread-local vector would be another one inside the workers.
  const AttentionTask* const all = tasks.data();
  auto run = [&a, all](int64_t index) { active->paged_attention(a, all[index]); };
  Pool::instance().run(static_cast<int64_t>(tasks.size()), run);
}

}  // namespace hagane
