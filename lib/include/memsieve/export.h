#pragma once
// The shared library shows what carries this mark, and nothing else.

#define MEMSIEVE_API __attribute__((visibility("default")))
