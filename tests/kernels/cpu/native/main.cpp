// Checks every kernel of the operations' table on each instruction set of this machine, without Python: what
// is cross-compiled can run under emulation. Arguments: the sets that have to be here, the best first.
#include "checks.h"
#include "dispatch.h"
#include "pool.h"

using namespace checks;

namespace {

constexpr const char* kSets[] = {"amx",       "avx512_bf16", "avx512", "avx_vnni", "avx2",
                                 "neon_bf16", "neon_i8mm",   "neon",   "generic"};

bool check_set(const Kernels& kernels) {
  use_kernels(&kernels);
  Checks checks(kernels);
  for (auto* check : {check_linear, check_changes, check_quantizing, check_rows, check_heads, check_attention,
                      check_sampling, check_training, check_training_attention})
    check(checks);
  std::printf("%s: %lld checks, %lld failures\n", kernels.name, static_cast<long long>(checks.count),
              static_cast<long long>(checks.failures));
  return checks.failures == 0;
}

}  // namespace

int main(int count, char** arguments) {
  Pool::instance().start({0, 1});
  std::vector<std::string> here, wanted(arguments + 1, arguments + count);
  bool good = true;
  for (const char* name : kSets)
    if (const Kernels* kernels = find_kernels(name)) {
      here.push_back(name);
      good &= check_set(*kernels);
    }
  if (here.front() != find_kernels(nullptr)->name) good = false, std::puts("not the best set");
  if (!wanted.empty() && here != wanted) good = false, std::puts("not the sets that were expected");
  Pool::instance().stop();
  return good ? 0 : 1;
}
