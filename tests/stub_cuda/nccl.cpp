// NCCL beside runtime.cpp: ranks are processes of this machine, which meet in shared memory. No header of NCCL's is
// needed; numbers of types and operators are those of nccl.h.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>

namespace {

constexpr size_t kSlot = size_t{1} << 20;  // bytes that a rank can show the others at a time
constexpr int kOk = 0, kUnsupported = 5;

struct UniqueId {
  char bytes[128];
};

struct Comm {
  int rank, size;
  struct Meeting {
    pthread_barrier_t barrier;
    int ready;
  } * meeting;
  char* slots;

  char* slot(int of) const { return slots + kSlot * static_cast<size_t>(of); }
  void meet() const { pthread_barrier_wait(&meeting->barrier); }
};

int join(Comm** out, int size, const UniqueId& id, int rank) {
  const size_t bytes = 4096 + kSlot * static_cast<size_t>(size);
  const int file = shm_open(id.bytes, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return kUnsupported;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  auto* meeting = static_cast<Comm::Meeting*>(memory);
  if (rank == 0) {
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&meeting->barrier, &attributes, static_cast<unsigned>(size));
    __atomic_store_n(&meeting->ready, 1, __ATOMIC_SEQ_CST);
  }
  while (__atomic_load_n(&meeting->ready, __ATOMIC_SEQ_CST) == 0) usleep(1000);
  *out = new Comm{rank, size, meeting, static_cast<char*>(memory) + 4096};
  (*out)->meet();
  if (rank == 0) shm_unlink(id.bytes);
  return kOk;
}

size_t bytes_of(int type) {  // ncclDataType_t
  constexpr size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return sizes[type];
}

/// Shows `in` to all ranks part by part; `take(offset, bytes)` then finds it in the slots.
template <class Take>
int exchange(const Comm& comm, const void* in, size_t bytes, const Take& take) {
  for (size_t at = 0; at < bytes; at += kSlot) {
    const size_t part = std::min(kSlot, bytes - at);
    std::memcpy(comm.slot(comm.rank), static_cast<const char*>(in) + at, part);
    comm.meet();
    take(at, part);
    comm.meet();
  }
  return kOk;
}

template <class T>
int sum(const Comm& comm, const void* in, void* out, size_t n) {
  return exchange(comm, in, n * sizeof(T), [&](size_t at, size_t bytes) {
    auto* to = reinterpret_cast<T*>(static_cast<char*>(out) + at);
    std::memset(to, 0, bytes);
    for (int rank = 0; rank < comm.size; ++rank) {
      const auto* from = reinterpret_cast<const T*>(comm.slot(rank));
      for (size_t i = 0; i < bytes / sizeof(T); ++i) to[i] += from[i];
    }
  });
}

}  // namespace

extern "C" {

int ncclGetUniqueId(UniqueId* id) {
  std::random_device random;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->bytes, sizeof id->bytes, "/stub-nccl-%08x%08x", random(), random());
  return kOk;
}
int ncclGetVersion(int* version) {
  *version = 22809;
  return kOk;
}
int ncclCommInitRankConfig(Comm** comm, int size, UniqueId id, int rank, void*) {
  return join(comm, size, id, rank);
}
int ncclCommInitRank(Comm** comm, int size, UniqueId id, int rank) {
  return join(comm, size, id, rank);
}
int ncclCommInitRankScalable(Comm** comm, int size, int rank, int, UniqueId* id, void*) {
  return join(comm, size, *id, rank);
}
int ncclCommCount(const Comm* comm, int* size) {
  *size = comm->size;
  return kOk;
}
int ncclCommUserRank(const Comm* comm, int* rank) {
  *rank = comm->rank;
  return kOk;
}
int ncclCommGetAsyncError(const Comm*, int* error) {
  return *error = kOk;
}
const char* ncclGetErrorString(int) {
  return "the stand-in NCCL cannot do this";
}
const char* ncclGetLastError(const Comm*) {
  return "";
}

int ncclAllReduce(const void* in, void* out, size_t n, int type, int op, const Comm* comm, void*) {
  if (op != 0) return kUnsupported;
  if (type == 7) return sum<float>(*comm, in, out, n);
  if (type == 8) return sum<double>(*comm, in, out, n);
  if (type == 4) return sum<int64_t>(*comm, in, out, n);
  return kUnsupported;
}
int ncclBroadcast(const void* in, void* out, size_t n, int type, int root, const Comm* comm, void*) {
  return exchange(*comm, in, n * bytes_of(type),
                  [&](size_t at, size_t bytes) { std::memcpy(static_cast<char*>(out) + at, comm->slot(root), bytes); });
}
int ncclBcast(void* data, size_t n, int type, int root, const Comm* comm, void* stream) {
  return ncclBroadcast(data, data, n, type, root, comm, stream);
}
int ncclAllGather(const void* in, void* out, size_t n, int type, const Comm* comm, void*) {
  const size_t all = n * bytes_of(type);
  return exchange(*comm, in, all, [&](size_t at, size_t bytes) {
    for (int rank = 0; rank < comm->size; ++rank)
      std::memcpy(static_cast<char*>(out) + all * static_cast<size_t>(rank) + at, comm->slot(rank), bytes);
  });
}

}  // extern "C"
