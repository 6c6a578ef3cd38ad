// metrics.jsonl: when its lines are written, and how a resumed run goes on with it.
#include <support/files.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/metrics/metrics.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace of_test_metrics {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace memsieve::testing;

TEST_CASE("metrics wait for the sieve's report and keep their order") {
  const TemporaryFolder scratch;
  const std::string path = scratch.file("metrics.jsonl");
  MetricsOptions options;
  options.jsonl = path;
  options.channels.emplace();
  options.drifts = true;
  MetricsWriter writer(options);
  StepMetrics step;
  StepReport report;
  report.drift = 0.75;
  report.mean_score = std::nan("");
  step.step = 0;
  writer.step(step);
  writer.flush();
  CHECK(read_file(path).empty());
  report.step = 1;
  writer.report(report);
  report.step = 0;
  report.dropped = 3;
  writer.report(report);
  step.step = 1;
  writer.step(step);
  writer.flush();
  std::istringstream lines(read_file(path));
  std::string first, second, rest;
  std::getline(lines, first);
  std::getline(lines, second);
  CHECK_THAT(first, Catch::Contains("\"step\":0") && Catch::Contains("\"dropped\":3") &&
                        Catch::Contains("\"mean_score\":null") && Catch::Contains("\"drift\":0.75") &&
                        !Catch::Contains("passed_over"));
  CHECK_THAT(second, Catch::Contains("\"step\":1") && Catch::Contains("\"dropped\":0"));
  CHECK_FALSE(std::getline(lines, rest));
}

TEST_CASE("a resumed run's metrics begin where the checkpoint was") {
  const TemporaryFolder scratch;
  const RunFolder folder(scratch.file("run"));
  std::filesystem::create_directories(folder.path());
  std::ofstream(folder.file("metrics.jsonl"))
      << "{\"kind\":\"validation\",\"step\":0}\n{\"kind\":\"step\",\"step\":3}\n{\"kind\":\"step\",\"step\":4}\n"
         "{\"kind\":\"validation\",\"step\":4}\n{\"kind\":\"st";
  folder.trim_metrics(4);
  CHECK(read_file(folder.file("metrics.jsonl")) ==
        "{\"kind\":\"validation\",\"step\":0}\n{\"kind\":\"step\",\"step\":3}\n");
}

}  // namespace of_test_metrics
