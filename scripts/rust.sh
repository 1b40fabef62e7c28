# Cargo for the scripts. Sourcing it puts the folder in which rustup keeps cargo in front of PATH, as rustup's own
# environment does. need_cargo installs a cargo where it is missing or too old; it uses $here, say, die, as_root,
# apt_update and packages of scripts/services.
# shellcheck shell=bash

cargo_bin=${CARGO_HOME:-${HOME-}/.cargo}/bin
[[ :$PATH: == *":$cargo_bin:"* ]] || PATH=$cargo_bin:$PATH

is_at_least() { # version, least version
  [[ -n $1 && $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# Empty where there is no cargo, or rustup's without a toolchain.
cargo_version() { { cargo --version 2>/dev/null || true; } | awk '{print $2}'; }

apt_candidate() { apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" {print $2}'; }
may_install() { command -v apt-get >/dev/null && { [[ $(id -u) -eq 0 ]] || command -v sudo >/dev/null; }; }

# The distribution's cargo if that is new enough, else its rustup; nothing if it has neither.
install_rust() { # least version
  apt_update
  if is_at_least "$(apt_candidate cargo)" "$1"; then
    # Not with `packages`, which leaves an older one as it is.
    say "installing packages: cargo rustc"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
      -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install cargo rustc >&2
  elif [[ -n $(apt_candidate rustup) ]]; then
    packages rustup
  fi
}

install_toolchain() {
  say "installing Rust's stable toolchain with rustup"
  rustup toolchain install stable --profile minimal >&2 || return 0
  # Where there is a default already, it is its owner's choice.
  rustup default >/dev/null 2>&1 || rustup default stable >&2
}

need_cargo() {
  local least found remedy
  least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/Cargo.toml")
  found=$(cargo_version)
  is_at_least "$found" "$least" && return
  say "cargo is ${found:-missing}, and has to be $least or newer"
  command -v rustup >/dev/null || ! may_install || install_rust "$least"
  hash -r
  found=$(cargo_version)
  if command -v rustup >/dev/null && ! is_at_least "$found" "$least"; then
    install_toolchain
    found=$(cargo_version)
  fi
  is_at_least "$found" "$least" && return
  remedy="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
  if command -v rustup >/dev/null; then
    remedy="rustup toolchain install stable --profile minimal && rustup default stable"
  fi
  die "no package here has it; install Rust $least or newer with this line, and start again:
  $remedy"
}
