// What C++ throws, as Python's exceptions: the classes of memsieve.errors, with the library's one line.
#include <c10/util/Exception.h>

#include "bindings.h"

namespace memsieve::python {

namespace {

void raise(const char* name, const std::string& line) {
  const py::object type = py::module_::import("memsieve.errors").attr(name);
  // What a file or a peer said need not be UTF-8.
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(line.data(), static_cast<Py_ssize_t>(line.size()), "replace"));
  if (text) PyErr_SetObject(type.ptr(), text.ptr());
}

/// What a Python callable raised, the same object. Not by restore(), which an exception allows only once.
void raise_again(const py::error_already_set& own) {
  PyErr_Restore(py::object(own.type()).release().ptr(), py::object(own.value()).release().ptr(),
                py::object(own.trace()).release().ptr());
}

/// Raises the Python exception that `error` wraps, if it does.
bool raise_nested(const Error& error) {
  try {
    std::rethrow_if_nested(error);
  } catch (const py::error_already_set& own) {
    raise_again(own);
    return true;
  } catch (...) {
    return false;
  }
  return false;
}

/// The rank at fault raises what went wrong there: what its callable raised, or an error of the cause's class.
void raise_peer_error(const PeerError& error) {
  if (!error.cause()) return raise("PeerError", error.what());
  try {
    std::rethrow_exception(error.cause());
  } catch (const py::error_already_set& own) {
    raise_again(own);
  } catch (const ConfigError&) {
    raise("ConfigError", error.what());
  } catch (const DataError&) {
    raise("DataError", error.what());
  } catch (const NonFiniteError&) {
    raise("NonFiniteError", error.what());
  } catch (const PeerError&) {
    raise("PeerError", error.what());
  } catch (const Error& cause) {
    if (!raise_nested(cause)) raise("Error", error.what());
  } catch (...) {  // c10d's, where a peer is gone, or torch's
    raise("PeerError", error.what());
  }
}

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const PeerError& error) {
    raise_peer_error(error);
  } catch (const ConfigError& error) {
    raise("ConfigError", error.what());
  } catch (const DataError& error) {
    raise("DataError", error.what());
  } catch (const NonFiniteError& error) {
    raise("NonFiniteError", error.what());
  } catch (const Error& error) {
    if (!raise_nested(error)) raise("Error", error.what());
  } catch (const c10::Error& error) {
    raise("Error", one_line(error));
  }
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator(translate);
}

}  // namespace memsieve::python
