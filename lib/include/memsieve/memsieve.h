#pragma once
// All of memsieve's public API, except the c10d back end (memsieve/c10d_communicator.h) and
// plug-ins (memsieve/plugin.h).

#include <memsieve/batch.h>
#include <memsieve/builtin.h>
#include <memsieve/communicator.h>
#include <memsieve/error.h>
#include <memsieve/filter.h>
#include <memsieve/schema.h>
#include <memsieve/sieve.h>
#include <memsieve/signal.h>
