// The kernels' arguments, and the table of functions that every instruction set fills.
#pragma once

#include <atomic>
#include <vector>

#include "common.h"

namespace hagane {

enum class Format : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, grouped = 4 };

// A weight matrix [out, in], packed so that one 64-byte line holds four bytes ("a unit") of each of
// 16 outputs: the shape of a VNNI operand, of a row of an AMX tile, and of a 16-lane vector.
//
//   codes [out / 16][units][16]       out and units padded with zeros to multiples of 16
//   one unit:  f32   1 input
//              bf16  2 inputs
//              int8  4 inputs, signed
//              int4  8 inputs, stored plus 8; byte b holds input b (low half) and b + 4 (high half)
//              grouped: by 32 inputs, `bits` units: four as of int4, then the fifth bits or the fifth
//                    and sixth (grouped.inc); or eight as of int8. Codes are unsigned.
//   scale      int8  float [out]
//              int4  bf16 [out / 16][in / group][16]
//              grouped: f16 as of int4, and f16 minima or none: weight = scale * (code - zero) + minimum
struct Weight {
  Format format;
  int64_t out, in, units, group;
  const uint32_t* codes;
  const void* scale;
  const float* bias;         // float [out], or null
  const float* input_scale;  // int8: float [in], or null: what x is multiplied by before it is quantized
  // int8 and int4: inputs in blocks of this many are rotated (hadamard.inc) before they are quantized, as
  // those of the codes were; 0: as they are.
  int64_t rotation;
  // grouped: bits of a code, 4, 5, 6 or 8; the code of weight 0, or of the minimum; or null.
  int32_t bits, zero;
  const f16* minimum;
  const int32_t* order;  // grouped: int32 [in], which input each code multiplies; or null: in order

  int64_t blocks() const { return ceil_div(out, 16); }
  int64_t groups() const { return in / group; }
  // With those that only units of codes have.
  int64_t padded_inputs() const { return format == Format::grouped ? in : units << static_cast<int>(format); }
  // Of one element of a prepared row.
  int64_t input_bytes() const { return format == Format::f32 ? 4 : format == Format::bf16 ? 2 : 1; }
  // Scales of a prepared row, and sums of its codes.
  int64_t input_scales() const { return format == Format::grouped ? in / 32 : 1; }
  int64_t input_sums() const { return format == Format::int4 || format == Format::grouped ? groups() : 1; }
};

struct Matrix {
  void* data;
  DType dtype;
  int64_t stride;  // in elements

  template <class T>
  T* row(int64_t index) const { return static_cast<T*>(data) + index * stride; }
};

// The rows of x as the weight's format wants them: f32 float, bf16 bf16, int8 and int4 int8 codes
// with one scale per row (dynamic quantization per token), grouped with one per 32 inputs. `stride` is in elements; rows are padded
// with zeros up to a multiple of 16 rows and to whole tiles.
struct Prepared {
  const void* rows;
  int64_t count, stride;
  const float* scale;  // [count][input_scales]
  // Where sums begin whose codes were made unsigned, to take off again what that adds: -128 times
  // the row's inputs for int8 [count], -8 times the group's for int4 [count][groups]. For grouped the
  // sums of the groups' codes as they are [count][groups].
  const int32_t* offsets;

  template <class T>
  const T* row(int64_t index) const { return static_cast<const T*>(rows) + index * stride; }
};

// The change that one adapter (Hu et al., 2021, arXiv:2106.09685) makes to one matrix: b (a x), in float32; for
// int8 a x has 8 bits too.
//   a  [ranks, in], packed like every weight: f32, bf16 or int8, by what the matrix' inputs are made
//   b  [out / 16][units of ranks][16] in a's format, int8 with a scale per output. A fused matrix has
//      ranks of its own for each of its parts, so only the units that are not zero are there: block i
//      of outputs has the lines first_line[i] to first_line[i + 1], the first of which holds unit
//      first_unit[i].
//   gain  DoRA (Liu et al., 2024, arXiv:2402.09353): what of the matrix' own result W x is added to each
//      output, 0 for none; or null
struct LowRank {
  Weight a;
  const uint32_t* b;
  const int32_t *first_line, *first_unit;  // [blocks + 1], [blocks]
  const float* scale;                      // int8: [out]
  const float* gain;                       // [blocks * 16], or null

  const uint32_t* lines(int64_t block) const { return b + 16 * int64_t{first_line[block]}; }
};

// The changes of all adapters to one matrix; null, or beyond the end, for those that leave it alone.
struct Bank {
  std::vector<const LowRank*> slots;

  const LowRank* of(int32_t slot) const {
    const size_t index = static_cast<size_t>(slot);  // -1 is beyond every end
    return index < slots.size() ? slots[index] : nullptr;
  }
};

// Rows of one call that have the same change, by their numbers; `first` is how many rows the groups
// before it have.
struct Group {
  const LowRank* change;
  const int32_t* rows;
  int64_t count, first;
};

// a x, [rows in the order of groups][stride]; for int8 as codes with a scale for
// every 16 ranks, and the sums of every unit's four codes.
struct Hidden {
  float* values;
  int8_t* codes;
  float* scale;       // [rows][stride / 16]
  int32_t* unit_sums;  // [rows][stride / 4]
  int64_t stride;
};

// Changes to the rows of one call.
struct Changes {
  const Group* groups;
  int64_t group_count;
  const int32_t* unchanged;  // the other rows
  int64_t unchanged_count, rows;
  Hidden hidden;
};

// Blocks of a cache that the next attention reads. Products of many rows leave the memory idle, and have
// these fetched meanwhile.
class Upcoming {
 public:
  void clear() { blocks_.clear(); }
  void reset(int64_t block_bytes) {
    blocks_.clear();
    block_bytes_ = block_bytes;
    taken_.store(0, std::memory_order_relaxed);
  }
  void add(const void* block) { blocks_.push_back(static_cast<const std::byte*>(block)); }
  bool empty() const { return blocks_.empty(); }

  // Where the next `bytes` begin, or null when all were taken. Beyond a block's end lies, most often,
  // the next one.
  const std::byte* take(int64_t bytes) {
    const int64_t first = taken_.fetch_add(bytes, std::memory_order_relaxed);
    const size_t block = static_cast<size_t>(first / block_bytes_);
    return block < blocks_.size() ? blocks_[block] + first % block_bytes_ : nullptr;
  }

 private:
  std::vector<const std::byte*> blocks_;
  int64_t block_bytes_ = 1;
  std::atomic<int64_t> taken_{0};
};

struct Linear {
  const Weight& weight;
  Prepared x;
  Matrix out;
  const void* residual;            // like out, or null: added to the result
  // Or null: b (a x) of blocks from `added_first` on, [blocks][rows][16]; -0 for rows without a
  // change, which keep their bits.
  const float* added = nullptr;
  int64_t added_first = 0;
  Upcoming* upcoming = nullptr;  // or null

  // The terms to add to 16 outputs of a row, or null.
  const float* added_to(int64_t row, int64_t block) const {
    return added ? added + 16 * ((block - added_first) * x.count + row) : nullptr;
  }
};

// One call of attention over a paged cache.
//   keys    [blocks][kv_heads][block_size / 16][head_dim / pair][16][pair]
//   values  [blocks][kv_heads][block_size / pair][padded head_dim][pair]
// with pair = 2 for bf16 and int8 and 1 for f32. Padded head_dim is a multiple of 16. In an int8
// cache the codes of each block are followed by their scales, float [kv_heads][block_size]: one for
// every token and head, of its key or its value; keys are rotated first (hadamard.inc).
// Without `values` these are the first `value_dim` features of the keys; with them they are as wide as keys.
struct Attention {
  Matrix q, out;  // [tokens, heads * head_dim] and [tokens, heads * value_dim]
  DType cache_dtype;
  void *keys, *values;
  int64_t heads, kv_heads, head_dim, block_size;
  const int32_t* block_tables;  // [sequences, table_stride]
  int64_t table_stride;
  const int32_t *query_starts, *context_lengths;  // [sequences + 1], [sequences]
  int64_t sequences, window;                      // window 0: none
  float scale, cap;                               // cap 0: none
  // [heads] or null: the score of a key without a value, which every query sees.
  const float* sinks;
  int64_t value_dim;
};

// The block of features in which keys of an int8 cache are rotated: a matrix exists for powers of two. Values
// in the keys are whole blocks.
inline int64_t key_rotation(int64_t head_dim, int64_t value_dim) {
  const int64_t both = head_dim | value_dim;
  return both & -both;
}

// Queries [first, last) of one sequence, for its key/value heads [head, last_head), and of the heads that share
// one of these the ones [member, last_member).
struct AttentionTask {
  int64_t sequence, head, last_head, first, last, member, last_member;
};

// Cosines and sines of position times frequency, times the magnitude: each [tokens, count].
struct RopeTables {
  const int64_t* positions;
  const float* frequencies;  // [count]
  float magnitude;
  int64_t tokens, count;
  float *cos, *sin;
};

// Normalises (if weights are given) and rotates queries and keys of qkv rows in place, and takes the
// center off the keys: a constant, which the softmax does not see. The first `rotated` features of a head
// turn: i with i + rotated / 2, or neighbours if `interleaved`.
struct Rotary {
  Matrix qkv;                // [tokens, (heads + 2 * kv_heads) * head_dim]
  const float *cos, *sin;    // [tokens, rotated / 2]
  const void *q_norm, *k_norm;  // [head_dim] in qkv's dtype, or null; of all heads together if `whole`
  const float* center;          // [kv_heads * head_dim], or null
  float eps, offset;            // what is added to the norms' weights
  int64_t tokens, heads, kv_heads, head_dim, rotated;
  bool interleaved, whole;

  bool plain() const { return rotated == head_dim && !interleaved && !whole && offset == 0; }
};

// Multi-head latent attention: queries turned in place, keys and values of all heads out of a token's parts.
// The last `rotated` features of queries turn, and `shared`, the end of every head's key: i with
// i + rotated / 2, or neighbours if `interleaved`. Values are followed by zeros.
struct LatentHeads {
  Matrix q;                // [tokens, heads * (plain + rotated)]
  Matrix kv;               // [tokens, heads * (plain + values)]
  Matrix shared;           // [tokens, rotated]
  const float *cos, *sin;  // [tokens, rotated / 2]
  Matrix k, v;             // like q
  int64_t tokens, heads, plain, rotated, values;
  bool interleaved;
};

// The same over a cache of latents: the ends of the queries, turned, and each token's key, which is its latent
// vector and `shared`, turned.
struct LatentKeys {
  Matrix q;                // [tokens, heads * (plain + rotated)]
  Matrix latent, shared;   // [tokens, rank] and [tokens, rotated]
  const float *cos, *sin;  // [tokens, rotated / 2]
  Matrix wide;             // [tokens, heads * (rank + rotated)]: the end of each head is written
  Matrix k;                // [tokens, rank + rotated]
  int64_t tokens, heads, plain, rotated, rank;
  bool interleaved;
};

// The first `features` of each head of x.
struct NarrowHeads {
  Matrix x, out;  // [tokens, heads * width] and [tokens, heads * features]
  int64_t tokens, heads, width, features;
};

// x / rms(x) * (weight + offset), or if `centered` (x - mean) / deviation * weight + bias; plus a residual.
struct RowNorm {
  Matrix x, out;                           // [rows, features]
  const void *weight, *bias;               // [features] in x's dtype, bias may be null
  const void* residual;                    // [rows, features] in x's dtype, or null
  float eps, offset;
  bool centered;
  int64_t rows, features;
};

// The activation of x, if `gated` of its first half times the second.
struct Activation {
  enum Kind : int { silu = 0, gelu = 1, gelu_tanh = 2, clamped = 3 };

  Matrix x, out;  // [rows, features], x twice as wide if gated
  Kind kind;
  bool gated;
  int64_t rows, features;
};

// x * factor, plus a residual.
struct ScaledAdd {
  Matrix x, out;         // [rows, features]
  const void* residual;  // [rows, features] in x's dtype, or null
  float factor;
  int64_t rows, features;
};

// x * scale, then cap * tanh(x / cap) unless the cap is 0; in place.
struct Softcap {
  float* logits;
  int64_t rows, vocab, stride;
  float scale, cap;
};

// How rows choose experts by a router's scores (Routing in models/config.py).
struct Routing {
  const float* logits;      // [rows, experts]
  const float* correction;  // [experts], or null
  int64_t rows, experts, stride;
  int64_t chosen, groups, chosen_groups, group_best;
  bool sigmoid, normalised;
  float floor, scale;
  float jitter;      // of SparseMixer, whose every choice is a softmax over the near best
  int32_t* numbers;  // [rows, chosen], the best first
  float* weights;    // [rows, chosen]
};

// The experts' results, weighted and added up by row.
struct Mixture {
  const float* results;  // [slots, features]
  const int32_t* slots;  // [rows, chosen], -1 for none
  const float* weights;  // [rows, chosen]
  int64_t rows, chosen, features;
  Matrix out;            // [rows, features]
  const void* residual;  // like out, or null
};

// Rows times the sigmoid of a score each.
struct GatedRows {
  Matrix x, out;  // [rows, features]
  const float* scores;
  int64_t rows, features;
};

struct Store {
  Matrix k, v;  // [tokens, kv_heads * head_dim]
  DType cache_dtype;
  void *keys, *values;  // without values v is not read: it is in the keys (Attention)
  const int64_t* slots;
  int64_t tokens, kv_heads, head_dim, block_size, value_dim;
};

// Independent draws from every row of logits [rows, vocab]; top_k 0 is off.
struct Sampling {
  const float* logits;
  int64_t rows, vocab, stride, draws;
  const double *temperature, *top_p, *min_p, *uniform;
  const int64_t* top_k;
  int64_t* tokens;  // [rows, draws]
};

// The tokens of the largest weights e^((logit - largest) / temperature) of rows `sources`, in descending
// order; -1 and weight 0 where none above a thousandth is left. `totals` are the weights of all tokens.
struct Heaviest {
  const float* logits;
  int64_t rows, vocab, stride, count;
  const int64_t* sources;     // [rows]
  const double* temperature;  // [rows]
  int64_t* tokens;            // [rows, count]
  float* weights;             // [rows, count]
  double* totals;             // [rows]
};

// Rows `sources` of logits, with -inf for the tokens whose bit is 0.
struct Restriction {
  const float* logits;
  int64_t rows, vocab, stride;
  const int64_t* sources;  // [rows]
  const uint8_t* allowed;  // [rows, ceil(vocab / 8)]
  float* out;              // [rows, vocab]
};

// The most likely token of every row; `finite` is false where the largest logit is not a number or
// is infinite.
struct Argmax {
  const float* logits;
  int64_t rows, vocab, stride;
  int64_t* tokens;
  bool* finite;
};

// The log-probability of each row's target, and whether that is the likeliest token. With `gradients`,
// logits are overwritten with the derivatives of the log-probability by them.
struct TokenScores {
  Matrix logits;           // [rows, vocab]
  const int64_t* targets;  // [rows]
  int64_t rows, vocab;
  float* logprobs;         // [rows]
  bool* first;             // [rows]
  bool gradients;
};

// x / rms(x) * weight in float, rounded to the dtype of `out`.
struct Norm {
  const float *x, *weight;  // [rows, features], [features]
  float eps;
  int64_t rows, features;
  Matrix out;  // [rows, features]
};

// The gradients of a norm by x and by weight, from that of its result.
struct NormBackward {
  static constexpr int64_t kRows = 64;  // that one task adds up to a row of `parts`
  Matrix grad;              // [rows, features]
  const float *x, *weight;  // [rows, features], [features]
  float eps;
  int64_t rows, features;
  float* out;      // [rows, features]
  float* parts;    // [ceil(rows / kRows), features]
  float* weights;  // [features]: the sum of parts, in order
};

// Softmax of scaled scores in place, 0 for keys that a query does not see. With `gradients`, these, the
// gradients of the results, become those of the scores before they were scaled.
struct CausalSoftmax {
  Matrix scores;         // [rows, keys]
  void* gradients;       // like scores, or null
  int64_t rows, keys;
  int64_t queries;       // row r is query r % queries of some sequence and head ...
  int64_t offset;        // ... whose first query is the key at `offset`
  int64_t window;        // most recent keys seen, 0: all
  float scale;
};

// Causal attention of whole sequences side by side, in bf16, for training.
struct SequenceAttention {
  Matrix q, k, v;                 // [tokens, heads * head_dim] and twice [tokens, kv_heads * head_dim]
  Matrix out;                     // like q: the result, or in the backward pass its gradient
  Matrix grad_q, grad_k, grad_v;  // in the backward pass
  const int64_t* starts;          // [sequences + 1]
  int64_t sequences, heads, kv_heads, head_dim;
  int64_t window;                 // most recent keys seen, 0: all
  float scale;
};

// A matrix [out, in] that is read, in parts one under the other, and where it goes: as it is stored or as
// it is packed (Weight). Packed codes beyond its edges are zeros already.
struct Weights {
  struct Part {
    Matrix rows;  // f32 or bf16
    int64_t first;
  };
  std::vector<Part> parts;
  int64_t out, in;
  DType rounding;  // what weights are rounded to first
  int64_t group;   // of int4; 0 for int8
  int64_t rotation;  // as of Weight
  bool packed;
  int64_t units;   // of a packed row
  void *codes, *scale;

  // One row as a matrix of its own.
  Matrix row(int64_t index) const {
    size_t p = parts.size() - 1;
    while (parts[p].first > index) --p;
    const Matrix& m = parts[p].rows;
    const int64_t item = m.dtype == DType::f32 ? 4 : 2;
    return {static_cast<std::byte*>(m.data) + (index - parts[p].first) * m.stride * item, m.dtype, m.stride};
  }
};

// Codes [out][in], a byte each, as they are packed into a grouped matrix.
struct GroupedCodes {
  const uint8_t* codes;
  int64_t out, in;
  int bits;
  uint32_t* lines;
};

struct Kernels {
  const char* name;
  // Quantizes block `block` of 16 rows; `scratch` has room for 32 floats an input. Returns the first row
  // with NaN or an infinity, or -1.
  int64_t (*quantize_block)(const Weights&, int64_t block, std::byte* scratch);
  // Fills row `index` of the prepared activations.
  void (*prepare)(const Weight&, const Matrix& x, int64_t row, void* rows, int64_t stride,
                  float* scale, int32_t* offsets);
  // The outputs of blocks [first, last) for all rows.
  void (*linear)(const Linear&, int64_t first, int64_t last);
  // Linear::added of blocks [first, last).
  void (*expand)(const Changes&, int64_t first, int64_t last, float* added);
  void (*row_norm)(const RowNorm&, int64_t row);
  void (*activate)(const Activation&, int64_t row);
  void (*scaled_add)(const ScaledAdd&, int64_t row);
  void (*softcap)(const Softcap&, int64_t row);
  void (*silu_and_mul)(const Matrix& gate_up, int64_t features, const Matrix& out, int64_t row);
  void (*mix)(const Mixture&, int64_t row);
  void (*gate_rows)(const GatedRows&, int64_t row);
  void (*embed)(const Weight&, const int64_t* ids, const Matrix& out, int64_t row);
  void (*rotary)(const Rotary&, int64_t token);
  void (*latent_heads)(const LatentHeads&, int64_t token);
  void (*latent_keys)(const LatentKeys&, int64_t token);
  void (*narrow_heads)(const NarrowHeads&, int64_t token);
  void (*store)(const Store&, int64_t token);
  void (*paged_attention)(const Attention&, const AttentionTask&);
  void (*sample)(const Sampling&, int64_t row);
  void (*argmax)(const Argmax&, int64_t row);
  void (*heaviest)(const Heaviest&, int64_t row);
  void (*restrict_row)(const Restriction&, int64_t row);
  // For training: gradients by the inputs of the operations above.
  void (*rms_norm_backward)(const Matrix& grad, const Matrix& x, const void* weight, float eps,
                            int64_t features, const Matrix& out, int64_t row);
  void (*silu_and_mul_backward)(const Matrix& grad, const Matrix& gate_up, int64_t features,
                                const Matrix& out, int64_t row);
  // In place: the gradients of rotated queries and keys become those of `before`, the unrotated.
  void (*rotary_backward)(const Rotary& grad, const Matrix& before, int64_t token);
  void (*token_score)(const TokenScores&, int64_t row);
  // For pretraining.
  void (*norm)(const Norm&, int64_t row);
  // Rows [first, last), whose share of the weights' gradient goes to `part` [features].
  void (*norm_backward)(const NormBackward&, int64_t first, int64_t last, float* part);
  void (*causal_softmax)(const CausalSoftmax&, int64_t row);
  // All queries of one sequence that share a key/value head.
  void (*sequence_attention)(const SequenceAttention&, int64_t sequence, int64_t kv_head);
  void (*sequence_attention_backward)(const SequenceAttention&, int64_t sequence, int64_t kv_head);
};

const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();
const Kernels* neon_i8mm_kernels();
const Kernels* neon_bf16_kernels();

}  // namespace hagane
