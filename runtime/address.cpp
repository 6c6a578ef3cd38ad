#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <runtime/address.h>
#include <unistd.h>

#include <memory>

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

}  // namespace

std::optional<std::string> local_address_toward(const std::string& host) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (::getaddrinfo(host.c_str(), "9", &hints, &list) != 0) return std::nullopt;
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> guard(list, ::freeaddrinfo);
  for (const addrinfo* peer = list; peer; peer = peer->ai_next)
    if (auto address = own_end(*peer)) return address;
  return std::nullopt;
}

std::optional<std::string> reachable_address(const Launch& launch) {
  for (const auto& host : {launch.master_addr, std::string(kElsewhere)})
    if (auto address = local_address_toward(host); address && !is_loopback(*address)) return address;
  return std::nullopt;
}

}  // namespace memsieve::runtime
