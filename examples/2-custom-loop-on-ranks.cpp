// A loop on several ranks, with held-out pictures, known copies, and the starting model as reference.
//   ranks as processes:  torchrun --no-python --nproc_per_node 2 ./2-custom-loop-on-ranks
//   ranks as threads:    ./2-custom-loop-on-ranks 4
// Data and noise are keyed by their place in the global batch, so any number of ranks trains the same.
#include <ATen/core/grad_mode.h>
#include <memsieve/c10d_communicator.h>
#include <memsieve/memsieve.h>

#include <csignal>
#include <cstdio>
#include <future>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "toy_denoiser.h"

static const char* const kYaml = R"(
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {scale: log}}
  standardise: {by: timestep, population: held_out, bins: 5, window: 60}
  reference: {kind: start_model, draws: 5}
  evidence: {kind: ledger, visits: 8, min_visits: 2, pool: group}
  threshold: {kind: held_out, drop: 0.01, release: 0.1}
  held_out: {rows: 8}
)";

/// Rows `index` of `from`, noised by rows `place` of the noise of `key`, as the sieve wants to see them.
static memsieve::Batch make_batch(const toy::Denoiser& model, const toy::Data& from, const at::Tensor& index,
                                  const at::Tensor& ids, const at::Tensor& t, uint64_t key, const at::Tensor& place) {
  at::Tensor noise =
      at::randn({place.max().item<int64_t>() + 1, 4, 4, 4}, at::detail::createCPUGenerator(key)).index_select(0, place);
  auto [noisy, target] = toy::add_noise(from.pictures.index_select(0, index), noise, t);
  auto null_rows = [&model, &from, noisy = noisy, t](const at::Tensor& k) {
    return model(noisy.index_select(0, k), t.index_select(0, k), from.no_text.expand({k.size(0), 16}));
  };
  return {ids, t, model(noisy, t, from.text.index_select(0, index)), target, null_rows, {}};
}

static void train(const std::shared_ptr<memsieve::Communicator>& ranks) {
  const int64_t rows = 32 / ranks->size(), first = rows * ranks->rank(), steps = 300;
  toy::Data data = toy::make_data(), held_out = toy::make_data(8);
  toy::Denoiser model;
  toy::AdamW optimizer(model.parameters, 2e-3);
  memsieve::Setup setup;
  setup.filters = memsieve::builtin_filters();
  setup.dataset_size = setup.held_out_size = toy::kSamples;
  setup.rows_per_micro_batch = rows;
  for (int64_t i = 0; i < toy::kSamples; ++i) setup.group_id.push_back(i < toy::kRepeated ? 0 : i);
  auto sieve = memsieve::Sieve::from_text(kYaml, "ranks.yaml", ranks, setup);

  // What the starting model finds easy: every rank asks it about its share of the pictures.
  at::Tensor mine = at::arange(ranks->rank(), toy::kSamples, ranks->size(), at::kLong);
  for (int64_t d = 0; d < sieve.reference_draws(); ++d) {
    at::NoGradGuard no_grad;
    at::Tensor t = at::full_like(mine, int64_t((d + 0.5) / sieve.reference_draws() * toy::kSteps));
    sieve.reference(make_batch(model, data, mine, mine, t, 1000 + d, mine), false);
    sieve.reference(make_batch(model, held_out, mine, mine, t, 2000 + d, mine), true);
  }
  if (sieve.reference_draws() > 0) sieve.finish_reference();

  at::Tensor counts = at::zeros({2, 2});  // [repeated picture or not, visits and dropped visits] on this rank
  for (int64_t step = 0; step < steps; ++step) {
    at::Generator key = at::detail::createCPUGenerator(step);
    at::Tensor ids = at::randint(0, toy::kSamples, {32}, key, at::kLong).narrow(0, first, rows);
    at::Tensor t = at::randint(0, toy::kSteps, {32}, key, at::kLong).narrow(0, first, rows);
    memsieve::Batch batch = make_batch(model, data, ids, ids, t, 10000 + step, at::arange(first, first + rows));
    memsieve::Plan plan = sieve.inspect(batch, {step, 0});
    plan.loss((batch.prediction - batch.target).square().flatten(1).mean(1)).backward();

    std::vector<int64_t> id, picture, place, timestep;
    for (const memsieve::HeldOutVisit& visit : sieve.held_out_visits(step)) {
      id.push_back(visit.id), picture.push_back(visit.picture), place.push_back(visit.place);
      timestep.push_back(int64_t(visit.timestep_fraction * toy::kSteps));
    }
    if (!id.empty()) {
      at::NoGradGuard no_grad;
      sieve.observe(make_batch(model, held_out, at::tensor(picture), at::tensor(id), at::tensor(timestep), 20000 + step,
                               at::tensor(place)),
                    {step, 0});
    }
    for (at::Tensor& p : model.parameters)  // the mean over the ranks, as DistributedDataParallel makes it
      p.mutable_grad() = ranks->all_gather(p.grad().flatten()).mean(0).view_as(p);
    optimizer.step(sieve.end_step({step, 0}, model.gradients()));
    at::Tensor other = ids.ge(toy::kRepeated).to(at::kLong);
    counts.select(1, 0).index_add_(0, other, at::ones({rows}));
    counts.select(1, 1).index_add_(0, other, plan.weight().eq(0).to(at::kFloat));
  }
  counts = ranks->all_gather(counts.flatten()).sum(0).view({2, 2});
  if (ranks->rank() == 0) {
    std::printf("dropped: %.0f of %.0f visits of the repeated picture, %.0f of %.0f others; sum of parameters %.4f\n",
                counts[0][1].item<double>(), counts[0][0].item<double>(), counts[1][1].item<double>(),
                counts[1][0].item<double>(), model.parameters[0].abs().sum().item<double>());
  }
}

/// The process group that torchrun's environment describes.
static std::shared_ptr<memsieve::Communicator> ranks_of_torchrun(int rank, int size) {
  c10d::TCPStoreOptions options;
  options.port = std::stoi(std::getenv("MASTER_PORT"));
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");  // torchrun itself serves the store
  options.isServer = rank == 0 && !(agent && std::string(agent) == "True");
  auto store = c10::make_intrusive<c10d::TCPStore>(std::getenv("MASTER_ADDR"), options);
  auto gloo = c10d::ProcessGroupGloo::Options::create(std::chrono::seconds(60));
  gloo->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
  return std::make_shared<memsieve::C10dComm>(c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>("example", store), rank, size, gloo));
}

int main(int argc, char** argv) try {
  if (const char* size = std::getenv("WORLD_SIZE")) {
    std::signal(SIGPIPE, SIG_IGN);  // Gloo writes to peers that are gone; it should throw, not end the process
    train(ranks_of_torchrun(std::stoi(std::getenv("RANK")), std::stoi(size)));
    return 0;
  }
  std::vector<std::future<void>> threads;
  for (auto& rank : memsieve::make_thread_group(argc > 1 ? std::stoi(argv[1]) : 2))
    threads.push_back(std::async(std::launch::async, train, rank));
  for (std::future<void>& thread : threads) thread.get();
  return 0;
} catch (const memsieve::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
