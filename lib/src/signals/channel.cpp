#include "signals/channel.h"

#include <sstream>

#include "config/read.h"

namespace memsieve {

Schema filters_schema(const FilterRegistry& registry) {
  Schema named;
  for (const auto& entry : registry.entries()) {
    Schema keys = entry.options;
    keys.real("weight", Channel{}.weight, 0, 1e6, "factor of this filter's evidence in the sum over filters");
    named.optional_section(entry.name, keys, entry.doc);
  }
  return named;
}

static void check_scores_some_row(const Settings& filters, const std::string& name, double timestep_min,
                                  int64_t num_timesteps) {
  if (timestep_min < static_cast<double>(num_timesteps)) return;
  std::ostringstream text;
  text << "no row would be scored: timestep_min is " << timestep_min << ", but the schedule has " << num_timesteps
       << " timesteps, from 0; lower timestep_min";
  const std::string key = name + ".timestep_min";  // unless a plug-in's filter calls it otherwise
  refuse(filters, filters.has(key) ? key : name, text.str());
}

std::vector<Channel> read_channels(const Settings& sieve, const FilterRegistry& registry, int64_t num_timesteps) {
  std::vector<Channel> channels;
  const Settings filters = sieve.section("filters");
  // In the registry's order, not the file's: then the printed configuration means the same channels.
  for (const auto& entry : registry.entries()) {
    if (!filters.has(entry.name)) continue;
    const Settings own = filters.section(entry.name);
    Channel channel;
    channel.name = entry.name;
    channel.weight = own.real("weight");
    channel.filter = entry.make(own);
    channel.needs = channel.filter->needs();
    check_scores_some_row(filters, entry.name, channel.needs.timestep_min, num_timesteps);
    for (const auto& name : channel.needs.signals) {
      const SignalEntry* signal = registry.signals().find(name);
      if (signal == nullptr) {
        refuse(filters, entry.name,
               "reads the signal '" + name + "', which is not registered; known signals: " +
                   registry.signals().names() + " (a plug-in adds its own with registry.signals().add)");
      }
      channel.counterfactual |= !signal->counterfactual.empty();
      channel.reads_norm |= signal->is_norm;
      channel.reads_start |= signal->counterfactual == "start";
    }
    channels.push_back(std::move(channel));
  }
  if (channels.empty()) refuse(sieve, "filters", "names no filter; add for example `magnitude: {}`");
  return channels;
}

}  // namespace memsieve
