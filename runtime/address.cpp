#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <runtime/address.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <map>
#include <string>

namespace memsieve::runtime {

namespace {

// From the block of addresses set aside for documentation (RFC 5737): stands for "some other machine".
constexpr const char* kElsewhere = "192.0.2.1";

std::optional<std::string> own_end(const addrinfo& peer) {
  const int socket = ::socket(peer.ai_family, SOCK_DGRAM, 0);
  if (socket < 0) return std::nullopt;
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  char text[INET6_ADDRSTRLEN] = "";
  // of a datagram socket: only a route
  const bool found =
      ::connect(socket, peer.ai_addr, peer.ai_addrlen) == 0 &&
      ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size) == 0 &&
      ::getnameinfo(reinterpret_cast<sockaddr*>(&own), size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0;
  ::close(socket);
  return found ? std::optional<std::string>(text) : std::nullopt;
}

bool is_loopback(const std::string& address) {
  return address.rfind("127.", 0) == 0 || address == "::1";
}

using Addresses = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

Addresses resolve(const std::string& host, const std::string& port, int kind, int flags = 0) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_socktype = kind;
  hints.ai_flags = flags;
  if (::getaddrinfo(host.c_str(), port.c_str(), &hints, &list) != 0) list = nullptr;
  return {list, [](addrinfo* found) {
            if (found) ::freeaddrinfo(found);
          }};
}

std::string numeric(const sockaddr* address, socklen_t size) {
  char text[NI_MAXHOST] = "";
  return ::getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

/// Of this machine, loopback ones left out: address -> interface.
using Interfaces = std::map<std::string, std::string>;

Interfaces own_addresses() {
  Interfaces found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const std::string text = numeric(entry->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    if (!text.empty() && !is_loopback(text)) found.emplace(text, entry->ifa_name);
  }
  ::freeifaddrs(list);
  return found;
}

/// What MASTER_ADDR means on this machine.
struct Master {
  bool is_here = false;
  /// one of this machine's, other than loopback; or ""
  std::string address;
};

Master look_up_master(const Launch& launch) {
  Master master;
  const auto own = own_addresses();
  const auto list = resolve(launch.master_addr, "9", SOCK_STREAM);
  for (const addrinfo* one = list.get(); one; one = one->ai_next) {
    const std::string text = numeric(one->ai_addr, one->ai_addrlen);
    master.is_here |= is_loopback(text) || own.count(text) > 0;
    if (master.address.empty() && own.count(text) > 0) master.address = text;
  }
  return master;
}

/// The interface that the user names to Gloo; else the one that leads to the others; else any but loopback.
std::string address_for_peers(const Launch& launch) {
  const auto own = own_addresses();
  const char* const told = std::getenv("GLOO_SOCKET_IFNAME");
  for (const auto& [address, interface] : own)
    if (told && interface == told) return address;
  if (auto address = reachable_address(launch)) return *address;
  return own.empty() ? "127.0.0.1" : own.begin()->first;
}

bool all_here(const Launch& launch) {
  return launch.local_world_size == launch.world_size;
}

}  // namespace

std::optional<std::string> local_address_toward(const std::string& host) {
  const auto list = resolve(host, "9", SOCK_DGRAM);
  for (const addrinfo* peer = list.get(); peer; peer = peer->ai_next)
    if (auto address = own_end(*peer)) return address;
  return std::nullopt;
}

std::optional<std::string> reachable_address(const Launch& launch) {
  for (const auto& host : {launch.master_addr, std::string(kElsewhere)})
    if (auto address = local_address_toward(host); address && !is_loopback(*address)) return address;
  return std::nullopt;
}

std::string listening_address(const Launch& launch) {
  if (all_here(launch)) return "127.0.0.1";
  if (auto master = look_up_master(launch); !master.address.empty()) return master.address;
  return address_for_peers(launch);
}

std::string store_address(const Launch& launch) {
  if (launch.store_exists) return launch.master_addr;  // torchrun's agent listens where it likes
  return all_here(launch) || launch.rank == 0 || look_up_master(launch).is_here ? listening_address(launch)
                                                                                : launch.master_addr;
}

int bound_socket(const std::string& address, int port) {
  const auto list = resolve(address, std::to_string(port), SOCK_STREAM, AI_NUMERICHOST | AI_NUMERICSERV);
  if (!list) {
    errno = EADDRNOTAVAIL;
    return -1;
  }
  const int file = ::socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (file < 0) return -1;
  const int on = 1;
  ::setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(file, list->ai_addr, list->ai_addrlen) == 0) return file;
  const int why = errno;
  ::close(file);
  errno = why;
  return -1;
}

}  // namespace memsieve::runtime
