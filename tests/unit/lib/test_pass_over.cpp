// What is told of visits that were passed over and of looks, who shares a flag, and which configurations go together.
#include <hdf5.h>
#include <support/files.h>
#include <support/message_of.h>
#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <cmath>
#include <set>

namespace of_test_pass_over {

using memsieve::kFlagLag;
using memsieve::Sieve;
using toy::scripted;

namespace {

std::string yaml(const std::string& action = "pass_over: true", const std::string& more = "",
                 const std::string& evidence = "kind: ledger, visits: 1, min_visits: 1") {
  return "sieve:\n  filters: {magnitude: {}}\n  standardise: {by: none}\n  evidence: {" + evidence +
         "}\n  threshold: {kind: fixed, drop: 2" + (evidence == "kind: visit" ? "" : ", release: 2") +
         "}\n  action: {" + action + "}\n" + more;
}

Sieve make(const std::string& text, const memsieve::Setup& setup) {
  return Sieve::from_text(text, "test.yaml", std::make_shared<memsieve::SoloComm>(), setup);
}

memsieve::Batch rows(const std::vector<int64_t>& ids, float magnitude) {
  const auto count = static_cast<int64_t>(ids.size());
  return scripted(at::tensor(ids, at::kLong), at::full({count}, 500), at::ones({count}), at::full({count}, magnitude));
}

void take_step(Sieve& sieve, int64_t step, const std::vector<int64_t>& ids, float magnitude) {
  sieve.inspect(rows(ids, magnitude), {step, 0});
  sieve.end_step({step, 0});
}

std::vector<int64_t> flagged(const Sieve& sieve, int64_t step) {
  const auto which = at::nonzero(sieve.flagged(step)).reshape({-1}).contiguous();
  return {which.const_data_ptr<int64_t>(), which.const_data_ptr<int64_t>() + which.numel()};
}

std::vector<int64_t> ids_of(const std::vector<memsieve::Look>& looks) {
  std::vector<int64_t> ids;
  for (const auto& look : looks) ids.push_back(look.id);
  return ids;
}

struct Row {
  uint64_t step;
  int64_t sample, group;
  uint8_t kind, captioned, flagged;
  float weight, score, raw, z;
};

std::vector<Row> ledger(const std::string& path) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, H5P_DEFAULT);
  REQUIRE(file >= 0);
  const hid_t visits = H5Dopen2(file, "visits", H5P_DEFAULT), space = H5Dget_space(visits);
  std::vector<Row> out(H5Sget_simple_extent_npoints(space));
  const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(Row));
  H5Tinsert(type, "step", HOFFSET(Row, step), H5T_NATIVE_UINT64);
  H5Tinsert(type, "sample", HOFFSET(Row, sample), H5T_NATIVE_INT64);
  H5Tinsert(type, "group", HOFFSET(Row, group), H5T_NATIVE_INT64);
  H5Tinsert(type, "kind", HOFFSET(Row, kind), H5T_NATIVE_UINT8);
  H5Tinsert(type, "captioned", HOFFSET(Row, captioned), H5T_NATIVE_UINT8);
  H5Tinsert(type, "flagged", HOFFSET(Row, flagged), H5T_NATIVE_UINT8);
  H5Tinsert(type, "weight", HOFFSET(Row, weight), H5T_NATIVE_FLOAT);
  H5Tinsert(type, "score", HOFFSET(Row, score), H5T_NATIVE_FLOAT);
  H5Tinsert(type, "raw_magnitude", HOFFSET(Row, raw), H5T_NATIVE_FLOAT);
  H5Tinsert(type, "z_magnitude", HOFFSET(Row, z), H5T_NATIVE_FLOAT);
  REQUIRE(H5Dread(visits, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()) >= 0);
  H5Tclose(type);
  H5Sclose(space);
  H5Dclose(visits);
  H5Fclose(file);
  return out;
}

}  // namespace

TEST_CASE("a flag covers a whole group, and looks go round its samples") {
  auto setup = toy::setup(6, 2);
  setup.group_id = {7, 3, 7, 3, 5, 7};
  auto sieve = make(
      yaml("pass_over: true", "  revisit: {rows: 1}\n", "kind: ledger, visits: 1, min_visits: 1, pool: group"), setup);
  take_step(sieve, 0, {2}, 9);
  for (int64_t step = 1; step < kFlagLag; ++step) take_step(sieve, step, {4}, 1);
  CHECK(flagged(sieve, kFlagLag) == std::vector<int64_t>{0, 2, 5});
  std::set<int64_t> seen;
  for (int64_t step = kFlagLag; step < kFlagLag + 30; ++step) {
    const auto looks = sieve.looks(step);
    REQUIRE(looks.size() == 1);
    seen.insert(looks[0].id);
    sieve.look(rows({looks[0].id}, 9), {step, 0});
    take_step(sieve, step, {4}, 1);
  }
  CHECK(seen == std::set<int64_t>{0, 2, 5});
  CHECK(flagged(sieve, kFlagLag + 30) == std::vector<int64_t>{0, 2, 5});
}

TEST_CASE("every row of a look is probed, whatever the budget") {
  auto sieve = make(yaml("pass_over: true", "  probe: {kind: budget, fraction: 0.25}\n  revisit: {rows: 4}\n"),
                    toy::setup(6, 2));
  auto batch = rows(ids_of(sieve.looks(0)), 1);
  int64_t asked = 0;
  batch.null_prediction = [&asked](const at::Tensor& which) {
    asked += which.size(0);
    return at::zeros({which.size(0), 4});
  };
  sieve.look(batch, {0, 0});
  CHECK(asked == 4);
}

TEST_CASE("what a look shows counts as what a visit shows, for evidence and verdict") {
  const int64_t visits = GENERATE(1, 2);
  const float seen = GENERATE(1.F, 3.F, 6.F, 9.F);
  const std::string text =
      "sieve:\n  filters: {magnitude: {}}\n  standardise: {by: none}\n  action: {pass_over: true}\n"
      "  threshold: {kind: fixed, drop: 8, release: 4}\n  evidence: {kind: ledger, min_visits: 1, visits: " +
      std::to_string(visits) + "}\n";
  auto looking = make(text + "  revisit: {rows: 1, every: 8}\n", toy::setup(6, 2)),
       visiting = make(text, toy::setup(6, 2));
  for (auto* sieve : {&looking, &visiting}) {
    take_step(*sieve, 0, {1}, 9);
    for (int64_t step = 1; step < kFlagLag; ++step) take_step(*sieve, step, {4}, 1);
  }
  REQUIRE(looking.looks(kFlagLag).at(0).id == 1);
  looking.look(rows({1}, seen), {kFlagLag, 0});
  take_step(looking, kFlagLag, {4}, 1);
  take_step(visiting, kFlagLag, {1}, seen);
  const auto next = [](Sieve& sieve) {
    take_step(sieve, kFlagLag + 1, {1}, 6);
    return sieve.take_reports().back();
  };
  const auto a = next(looking), b = next(visiting);
  CHECK(a.scores == b.scores);
  CHECK(a.dropped == b.dropped);
  for (int64_t step = kFlagLag + 2; step < 2 * kFlagLag + 2; ++step) {
    CHECK(flagged(looking, step) == flagged(visiting, step));
    take_step(looking, step, {4}, 1);
    take_step(visiting, step, {4}, 1);
  }
}

TEST_CASE("the ledger and the report tell of passed-over visits and of looks") {
  const memsieve::testing::TemporaryFolder folder;
  auto setup = toy::setup(6, 2);
  setup.group_id = {10, 11, 12, 13, 14, 15};
  setup.ledger_path = folder.file("ledger.h5");
  const auto text = yaml("pass_over: true", "  revisit: {rows: 2, every: 8}\n");
  {
    auto sieve = make(text, setup);
    take_step(sieve, 0, {1}, 9);
    for (int64_t step = 1; step < kFlagLag; ++step) take_step(sieve, step, {4}, 1);
    sieve.take_reports();
    sieve.pass_over({1, 1}, {kFlagLag, 0});
    sieve.pass_over({3}, {kFlagLag, 0});
    sieve.look(rows({1, 1}, 5), {kFlagLag, 0});
    take_step(sieve, kFlagLag, {4}, 1);
    take_step(sieve, kFlagLag + 1, {4}, 1);
    const auto reports = sieve.take_reports();
    REQUIRE(reports.size() == 2);
    CHECK((reports[0].passed_over == 3 && reports[0].rows == 1 && reports[0].dropped == 0));
    CHECK(reports[1].passed_over == 0);
    sieve.flush();
    CHECK(sieve.state().at("ledger_rows").item<int64_t>() == kFlagLag + 2 + 3 + 1);
  }
  const auto visits = ledger(setup.ledger_path);
  // The second look filled up: nothing is kept of it.
  REQUIRE(visits.size() == kFlagLag + 6);
  const auto* at = &visits[kFlagLag];
  CHECK((at[0].kind == 0 && at[0].sample == 4));
  CHECK((at[1].kind == 3 && at[1].sample == 1 && at[1].group == 11 && at[1].flagged == 1 && at[1].weight == 0));
  CHECK((at[1].score == 5 && at[1].raw == 5 && at[1].step == kFlagLag));
  for (const auto& [row, sample] : {std::pair(at[2], 1), std::pair(at[3], 1), std::pair(at[4], 3)}) {
    CHECK((row.kind == 2 && row.sample == sample && row.group == 10 + sample && row.step == kFlagLag));
    CHECK((row.captioned == 0 && row.flagged == 1 && row.weight == 0));
    CHECK((std::isnan(row.score) && std::isnan(row.raw) && std::isnan(row.z)));
  }
  CHECK(at[5].step == kFlagLag + 1);
}

TEST_CASE("a state without flags restores where none are asked for, and only there") {
  const auto setup = toy::setup(6, 2);
  auto before = make(yaml(""), setup);
  take_step(before, 0, {1, 2}, 9);
  const auto old = before.state();
  CHECK(old.count("flags") == 0);
  auto same = make(yaml(""), setup);
  same.restore(old);
  CHECK(flagged(same, kFlagLag).empty());
  auto asking = make(yaml(), setup);
  CHECK_THROWS_WITH(asking.restore(old), Catch::Contains("'flags' is missing") && Catch::Contains("action.pass_over"));
  auto larger = make(yaml(), toy::setup(7, 2));
  auto state = larger.state();
  state["flags"] = at::zeros({6}, at::kByte);
  CHECK_THROWS_WITH(make(yaml(), toy::setup(7, 2)).restore(state), Catch::Contains("another data set"));
}

TEST_CASE("nobody is passed over without the key, or before the warm-up ends") {
  const auto setup = toy::setup(6, 2);
  auto off = make(yaml(""), setup);
  auto warm = make(yaml("pass_over: true, warmup_steps: 20"), setup);
  for (int64_t step = 0; step < 20; ++step) {
    CHECK(flagged(warm, step).empty());
    take_step(off, step, {1, 2}, 9);
    take_step(warm, step, {1, 2}, 9);
  }
  CHECK(flagged(off, 20).empty());
  CHECK(off.looks(20).empty());
  CHECK(flagged(warm, 20) == std::vector<int64_t>{1, 2});
}

TEST_CASE("what is wrong with a look or a passed-over sample ends the step on every rank") {
  const std::string text = yaml("pass_over: true", "  revisit: {rows: 2}\n  block_rows: 1\n");
  using Act = std::function<void(Sieve&, int64_t rank)>;
  const auto [act, words] = GENERATE(table<Act, std::string>({
      {[](Sieve& s, int64_t rank) {
         if (rank == 1) s.pass_over({6}, {0, 0});
       },
       "sample id 6 is out of range [0, 6)"},
      {[](Sieve& s, int64_t rank) {
         if (rank == 1) s.look(rows({5}, 1), {0, 0});
       },
       "what looks(0) names"},
      {[](Sieve& s, int64_t rank) {
         if (rank == 1) s.look(rows({1, 1}, 1), {0, 0});
       },
       "2 rows, but this call takes 1 to 1"},
  }));
  const auto errors = toy::on_ranks(2, [&](const std::shared_ptr<memsieve::Communicator>& comm) {
    auto sieve = Sieve::from_text(text, "test.yaml", comm, toy::setup(6, 2, 2));
    act(sieve, comm->rank());
    take_step(sieve, 0, {1}, 1);
  });
  for (const auto& error : errors) CHECK_THAT(error, Catch::Contains("rank 1") && Catch::Contains(words));
}

TEST_CASE("a look that is not finite stops the run with the sample's name, but not one that fills up") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  auto sieve = make(yaml("pass_over: true", "  revisit: {rows: 2}\n"), toy::setup(6, 2));
  take_step(sieve, 0, {1}, 9);
  for (int64_t step = 1; step < kFlagLag; ++step) take_step(sieve, step, {4}, 1);
  const auto looks = sieve.looks(kFlagLag);
  REQUIRE((looks[0].id == 1 && looks[1].id == 1));
  const auto seen = [](float first, float second) {
    return scripted(at::tensor({1, 1}, at::kLong), at::full({2}, 500), at::ones({2}), at::tensor({first, second}));
  };
  sieve.look(seen(3, nan), {kFlagLag, 0});
  CHECK_NOTHROW(take_step(sieve, kFlagLag, {4}, 1));
  const auto next = sieve.looks(kFlagLag + 1);
  REQUIRE((next[0].id == 1 && next[1].id == 1));
  sieve.look(seen(nan, 3), {kFlagLag + 1, 0});
  CHECK_THROWS_WITH(take_step(sieve, kFlagLag + 1, {4}, 1), Catch::Contains("sample 1: NaN or Inf"));
}

TEST_CASE("keys that contradict passing over are refused in one line") {
  const auto setup = toy::setup(6, 2);
  const auto refused = [&](const std::string& text, const std::string& words) {
    CHECK_THAT(memsieve::testing::message_of<memsieve::ConfigError>([&] { make(text, setup); }),
               Catch::Contains("test.yaml:") && Catch::Contains(words));
  };
  refused(yaml("pass_over: true", "", "kind: visit"), "needs `evidence.kind: ledger` or `discounted`");
  refused(yaml("pass_over: true, kind: downweight"), "needs `action.kind: drop`");
  refused(yaml("pass_over: true, max_fraction: 0.5"), "set action.max_fraction to 1");
  refused(yaml("", "  revisit: {rows: 2}\n"), "needs `action.pass_over: true`");
}

}  // namespace of_test_pass_over
