#pragma once
// Group together with the c10d types that its accessors hand out.

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <trainer/dist/group.h>
