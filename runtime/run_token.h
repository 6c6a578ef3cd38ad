#pragma once
// What the ranks of a run have in common and others do not: they know each other by it.

#include <c10/util/intrusive_ptr.h>
#include <runtime/launch.h>

#include <string>

namespace c10d {
class Store;
}

namespace memsieve::runtime {

/// HMAC-SHA-1 (RFC 2104) of `text`, 40 hexadecimal digits.
std::string hmac_sha1(const std::string& key, const std::string& text);

/// Made from the launcher's name of the job and, if there is one, from the secret file. Without that file it tells runs
/// apart, but can be guessed. Throws ConfigError if the file cannot be read, is empty, or can be read by others.
std::string run_token(const Launch& launch);

/// `store` as the ranks with this token see it. Keys lie below a name that is made from the token, and every value
/// carries a code (hmac_sha1 of key and value) that only they can make. What lacks it is not there: nobody reads it, it
/// is waited for until it comes, and compareSet writes over it. Counters (add) have no code. A value that is written
/// over by a stranger is missed, not believed.
c10::intrusive_ptr<c10d::Store> sealed_store(const c10::intrusive_ptr<c10d::Store>& store, const std::string& token);

}  // namespace memsieve::runtime
