// What every function of the shim that can fail does with an exception.
#pragma once
#include <exception>
#include <string>

// The reason of this thread's last failure.
extern thread_local std::string last_error;

// Runs `body`: 0, or -1 with the reason in `last_error`.
template <typename Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}
