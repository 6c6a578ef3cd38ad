// Parts of the mitigations that the comparison with Python does not reach, and how batches are divided.
#include <ATen/ATen.h>
#include <audit/measure/drawing.h>
#include <audit/measure/mitigation.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

namespace of_test_mitigation {

using namespace memsieve::audit;

TEST_CASE("every picture of every prompt is in one batch") {
  for (const int64_t rows : {1, 3, 4, 100}) {
    std::set<std::string> units;
    for (const auto& batch : drawings(5, 2, rows)) {
      CHECK(static_cast<int64_t>(batch.size()) <= rows);
      for (const Drawing& drawing : batch) CHECK(units.insert(unit_name("prompts", drawing)).second);
    }
    CHECK((units.size() == 10 && units.count("prompts/4/1") == 1));
  }
}

TEST_CASE("the attention's edit has a row of its own for each picture, captioned or not") {
  const TextAttentionEdit edit = attention_edit({2, 4}, 5, 1.25, at::kCPU);
  CHECK(at::equal(edit.scale.select(1, 0), at::tensor({1.f, 1.f, 1.25f, 1.25f})));
  CHECK(edit.scale.narrow(1, 1, 4).eq(1).all().item<bool>());
  const at::Tensor seen = edit.bias.eq(0);
  CHECK(at::equal(seen.sum(1), at::tensor({3, 5, 3, 5}, at::kLong)));
  CHECK(std::isinf(edit.bias[0][3].item<float>()));
  CHECK(seen[2][2].item<bool>());
}

TEST_CASE("correlation is that of pixels") {
  const at::Tensor a = at::arange(24, at::kFloat).cos().view({2, 3, 2, 2});
  const at::Tensor both = at::stack({a[0], -3 * a[0] + 1});
  CHECK(at::allclose(correlation(both, at::stack({2 * a[0] + 5, a[0]})), at::tensor({1.f, -1.f}), 1e-5, 1e-5));
}

}  // namespace of_test_mitigation
