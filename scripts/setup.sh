#!/usr/bin/env bash
# From a bare Debian or Ubuntu with Node and root to a built checkout. Behind `npm start` and `npm test`.
#
#   scripts/setup.sh             install what is missing, fetch npm packages, build
#   scripts/setup.sh --no-build  the same without the build
#   scripts/setup.sh --check     change nothing; report all that is missing
#
# Everything it says goes to stderr: stdout belongs to the command that runs after it.
# Exit codes: 0 ready · 1 a step failed · 2 this machine lacks something (all of it is listed) · 64 bad usage.
# No pipefail: `grep -q` ends before its input does, and the writer's SIGPIPE would count as "not found".
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
exec 1>&2

# 20.11 is the first release of Node 20 with the test runner's --test-timeout and --test-concurrency.
readonly NODE_MIN=20.11
readonly STAMP=node_modules/.cm-lock-hash
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK='# clustermesh setup: no service may start while packages are being installed'

CHECK_ONLY=no
BUILD=yes
for arg in "$@"; do
  case $arg in
    --check) CHECK_ONLY=yes ;;
    --no-build) BUILD=no ;;
    *) echo "setup: unknown option $arg (known: --check, --no-build)"; exit 64 ;;
  esac
done

PROBLEMS=()
problem() { PROBLEMS+=("$1"); }
say() { printf '%s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------------------------
# What is needed from the distribution: test | package | why

clang_targets_bpf() { have clang && clang --print-targets 2>/dev/null | grep -qw bpf; }
# Ubuntu's bpftool is a wrapper that looks for a build of the running kernel: being there is not enough, it must run.
bpftool_runs() { have bpftool && bpftool version >/dev/null 2>&1; }
libbpf_1() { ldconfig -p 2>/dev/null | grep -q 'libbpf\.so\.1 '; }
libzstd_1() { ldconfig -p 2>/dev/null | grep -q 'libzstd\.so\.1 '; }
libbpf_headers() { [[ -e /usr/include/bpf/bpf_helpers.h ]] && libbpf_1; }
file() { [[ -e $1 ]]; }

NEEDS=(
  'clang_targets_bpf|clang|compiles the eBPF programs'
  'have llc|llvm|object tools for the eBPF programs'
  'libbpf_headers|libbpf-dev|loads the eBPF programs'
  'file /usr/include/libelf.h|libelf-dev|reads eBPF object files'
  'file /usr/include/linux/bpf.h|linux-libc-dev|kernel headers for the eBPF programs'
  'bpftool_runs|bpftool|reads type information out of eBPF objects'
  'libzstd_1|libzstd1|compresses endpoint slices'
  'have etcd|etcd-server|the store of each cluster'
  'have etcdctl|etcd-client|looks into a store by hand'
  'have redis-server|redis-server|the queue of operations (connect, disconnect)'
  'have nft|nftables|cuts links in the lab'
  'have tcpdump|tcpdump|shows packets on the underlay'
  'have ip|iproute2|namespaces, links and routes'
  'have ping|iputils-ping|reachability'
  'have ethtool|ethtool|checksum offloads of virtual links'
  'have curl|curl|requests from pods'
  'have nsenter|util-linux|enters namespaces'
  'have setpriv|util-linux|drops rights'
  'have flock|util-linux|one setup at a time'
  'have ps|procps|process lists'
)

MISSING=() # packages
find_missing() {
  MISSING=()
  local need test package why known
  for need in "${NEEDS[@]}"; do
    IFS='|' read -r test package why <<<"$need"
    $test && continue
    known=" ${MISSING[*]-} "
    [[ $known == *" $package "* ]] && continue
    MISSING+=("$package")
    WHY[$package]=$why
  done
}
declare -A WHY=()

# ---------------------------------------------------------------------------------------------------------------------
# What no package can bring: root, apt, Node, kernel features. Each problem names the feature and what to do.

check_machine() {
  [[ $(uname -s) == Linux ]] || problem "Linux: this is $(uname -s). The datapath is eBPF; run it in a Linux machine or VM."
  if ! have node; then
    problem "Node: not found. Install Node $NODE_MIN or newer (nodejs.org, or the nodesource packages)."
  else
    local version
    version=$(node -p process.versions.node 2>/dev/null || node --version | tr -d v)
    if [[ $(printf '%s\n%s\n' "$NODE_MIN" "$version" | sort -V | head -1) != "$NODE_MIN" ]]; then
      problem "Node: this is $version, needed is $NODE_MIN or newer (nodejs.org, or the nodesource packages)."
    fi
    have npm || problem "npm: not found beside Node. Install the npm that belongs to this Node."
  fi
  if [[ $EUID -ne 0 ]]; then
    problem "root: this runs as user $(id -un 2>/dev/null || echo "$EUID"). Network namespaces, cgroups and eBPF need root: use sudo, or a root shell."
  fi
  if ((${#MISSING[@]})); then
    if ! have apt-get; then
      problem "apt: not found, so these Debian packages cannot be installed from here: ${MISSING[*]}. Install what corresponds to them in this distribution."
    elif [[ $EUID -ne 0 ]]; then
      problem "packages: missing, and only root can install them: apt-get install ${MISSING[*]}"
    fi
  fi
  [[ -r /sys/kernel/btf/vmlinux ]] ||
    problem "kernel BTF: /sys/kernel/btf/vmlinux is not there. Needs a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 12 and Ubuntu 22.04 have it)."
  if [[ -z $(cgroup2_mount) ]]; then
    problem "cgroup v2: no cgroup2 file system in /proc/mounts. Mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or boot with systemd.unified_cgroup_hierarchy=1."
  fi
}

cgroup2_mount() { awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts; }

# Features are probed by using them, in a namespace and directories that vanish again: config files lie, and in a
# container the feature may be there but forbidden. All probes together take about 50 ms.
probe_kernel() {
  [[ $EUID -eq 0 ]] || return 0
  local netns=cm-setup-$$ dir out cg
  dir=$(mktemp -d) || return 0
  if have ip; then
    if out=$(ip netns add "$netns" 2>&1); then
      probe_in_namespace "$netns" "$dir"
      ip netns del "$netns" 2>/dev/null
    else
      problem "network namespaces: cannot make one (CONFIG_NET_NS, or CAP_SYS_ADMIN missing in a container): $(oneline "$out")"
    fi
  fi
  cg=$(cgroup2_mount)
  if [[ -n $cg ]]; then
    if out=$(mkdir "$cg/cm-setup-$$" 2>&1); then
      [[ -e $cg/cm-setup-$$/cgroup.kill ]] ||
        problem "cgroup.kill: missing in $cg; needs Linux 5.14 or newer."
      if bpftool_runs && ! out=$(bpftool cgroup show "$cg/cm-setup-$$" 2>&1); then
        problem "eBPF on cgroups (CONFIG_CGROUP_BPF): $(oneline "$out")"
      fi
      rmdir "$cg/cm-setup-$$"
    else
      problem "cgroup v2: $cg is not writable (in a container: run it privileged, with the cgroup namespace of the host): $(oneline "$out")"
    fi
  fi
  rmdir "$dir" 2>/dev/null
}

probe_in_namespace() {
  local netns=$1 dir=$2 found name error
  # nsenter rather than `ip netns exec`: the latter remounts /sys, where BTF and the BPF file system are.
  if ! found=$(nsenter --net="/run/netns/$netns" bash -c '
    trap "umount \"$0\" 2>/dev/null" EXIT
    try() { local name=$1 out; shift; out=$("$@" 2>&1) || { printf "%s|%s\n" "$name" "${out//$'"'\n'"'/ }"; return 1; }; }
    if try "virtual Ethernet (CONFIG_VETH)" ip link add cmp0 type veth peer name cmp1; then
      if command -v tc >/dev/null && try "tc ingress hooks (CONFIG_NET_SCH_INGRESS)" tc qdisc add dev cmp0 clsact; then
        try "eBPF on tc (CONFIG_NET_CLS_BPF)" tc filter add dev cmp0 ingress bpf bytecode "1,6 0 0 0,"
      fi
    fi
    try "bridge (CONFIG_BRIDGE)" ip link add cmb0 type bridge
    try "VXLAN (CONFIG_VXLAN)" ip link add cmv0 type vxlan dstport 8472 external
    command -v nft >/dev/null && try "nftables (CONFIG_NF_TABLES)" nft add table inet cm_probe
    if try "BPF file system (CONFIG_BPF_SYSCALL)" mount -t bpf bpf "$0" && bpftool version >/dev/null 2>&1; then
      try "BPF system call (CONFIG_BPF_SYSCALL, CAP_BPF)" bpftool map create "$0/probe" type hash key 4 value 4 entries 1 name cm_probe
      try "BPF prefix maps (LPM trie)" bpftool map create "$0/lpm" type lpm_trie key 8 value 4 entries 1 name cm_probe flags 1
    fi
    true' "$dir" 2>&1); then
    problem "network namespaces: cannot enter one (CAP_SYS_ADMIN): $(oneline "$found")"
    return
  fi
  while IFS='|' read -r name error; do
    [[ -n $name ]] && problem "$name: $error (if this is a container, it must run privileged)"
  done <<<"$found"
}

oneline() { local text=${1//$'\n'/ }; printf '%s' "${text:-no reason given}"; }

stop_if_problems() {
  ((${#PROBLEMS[@]})) || return 0
  say "clustermesh cannot run on this machine yet. Missing:"
  printf '  - %s\n' "${PROBLEMS[@]}"
  exit 2
}

# ---------------------------------------------------------------------------------------------------------------------
# Doing things, with elapsed time for whatever takes longer than two seconds.

CHILD=
step() { # label command…
  local label=$1 log start=$SECONDS shown=0 now rc
  shift
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null &
  CHILD=$!
  while kill -0 "$CHILD" 2>/dev/null; do
    sleep 0.2
    now=$((SECONDS - start))
    if ((now >= 2)); then
      if [[ -t 2 ]]; then
        printf '\r  %s … %d s ' "$label" "$now"
      elif ((now >= shown)); then
        say "  $label … $now s"
        shown=$((now + 10))
      fi
    fi
  done
  wait "$CHILD"
  rc=$?
  CHILD=
  [[ -t 2 ]] && printf '\r\033[K'
  if ((rc)); then
    say "  $label: failed after $((SECONDS - start)) s, exit code $rc. Its last lines:"
    tail -25 "$log" | sed 's/^/    /'
    rm -f "$log"
    return 1
  fi
  say "  $label: done ($((SECONDS - start)) s)"
  rm -f "$log"
}

# A package's service must not start: the lab runs its own etcd and Redis on ports and directories of its own.
forbid_services() {
  [[ -e $POLICY ]] && mv "$POLICY" "$POLICY.cm-saved"
  printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
  chmod 755 "$POLICY"
}

# Also heals what a killed earlier run left behind.
restore_services() {
  if [[ -e $POLICY ]] && grep -qF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
  if [[ -e $POLICY.cm-saved ]]; then mv "$POLICY.cm-saved" "$POLICY"; fi
}

at_exit() {
  if [[ -n $CHILD ]]; then
    kill "$CHILD" 2>/dev/null
    wait "$CHILD" 2>/dev/null
  fi
  if [[ $EUID -eq 0 ]]; then restore_services; fi
}

# apt does not inherit the lock (it has its own): a daemon that a package leaves behind would hold it for ever. npm does,
# so that a setup that follows a killed one waits for what is left of it.
apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" 9>&-
}
apt_update() { apt-get update -o DPkg::Lock::Timeout=300 9>&-; }
apt_knows() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'; }

install_packages() {
  ((${#MISSING[@]})) || return 0
  local package names=() servers=()
  say "installing from $(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-this distribution}"):"
  for package in "${MISSING[@]}"; do printf '  %-16s %s\n' "$package" "${WHY[$package]}"; done
  for package in "${MISSING[@]}"; do
    if ! apt_knows "$package"; then
      step 'apt-get update' apt_update || return 1
      break
    fi
  done
  for package in "${MISSING[@]}"; do
    if [[ $package == bpftool ]] && ! apt_knows bpftool; then
      # Ubuntu ships bpftool among the kernel's tools.
      names+=(linux-tools-common linux-tools-generic)
    elif ! apt_knows "$package"; then
      problem "package $package (${WHY[$package]}): not known to apt here. On Ubuntu, enable the universe component (add-apt-repository universe)."
    else
      names+=("$package")
    fi
    [[ $package == etcd-server ]] && servers+=(etcd)
    [[ $package == redis-server ]] && servers+=(redis-server)
  done
  stop_if_problems
  forbid_services
  if ! step "apt-get install (${#names[@]} packages)" apt_install "${names[@]}"; then
    # Old package lists name files that are no longer on the mirror.
    say '  trying once more with fresh package lists'
    step 'apt-get update' apt_update && step "apt-get install (${#names[@]} packages)" apt_install "${names[@]}" || return 1
  fi
  restore_services
  if [[ -d /run/systemd/system ]] && ((${#servers[@]})); then
    systemctl disable --quiet "${servers[@]}" 2>/dev/null
    say "  ${servers[*]}: installed, but neither started nor enabled"
  fi
  link_bpftool
  hash -r
  find_missing
  for package in "${MISSING[@]}"; do
    if [[ $package == libbpf-dev ]] && ! libbpf_1; then
      problem "libbpf 1.x (libbpf.so.1): this distribution has an older one. Debian 12, Ubuntu 24.04 and newer have it."
    else
      problem "package $package is installed, yet what it should bring (${WHY[$package]}) does not work."
    fi
  done
  stop_if_problems
}

# Ubuntu's wrapper refuses when the running kernel is not the packaged one; any recent bpftool is good enough for us.
link_bpftool() {
  bpftool_runs && return 0
  local tool
  tool=$(ls -d /usr/lib/linux-tools*/*/bpftool /usr/lib/linux-tools-*/bpftool 2>/dev/null | sort -V | tail -1)
  [[ -n $tool ]] || return 0
  say "  bpftool: the wrapper has none for kernel $(uname -r); linking /usr/local/sbin/bpftool to $tool"
  ln -sf "$tool" /usr/local/sbin/bpftool
}

lock_hash() { { node -p 'process.versions.modules + process.arch'; cat package-lock.json; } | sha256sum | cut -d' ' -f1; }

install_node_packages() {
  local hash
  hash=$(lock_hash)
  [[ -f $STAMP && $(<"$STAMP") == "$hash" ]] && return 0
  say 'fetching the npm packages of package-lock.json'
  if ! step 'npm ci' npm ci --no-progress; then
    say '  npm ci needs a reachable registry (npm config get registry) and write access to this directory.'
    return 1
  fi
  printf '%s' "$hash" >"$STAMP"
}

# ---------------------------------------------------------------------------------------------------------------------

find_missing
check_machine
probe_kernel

if [[ $CHECK_ONLY == yes ]]; then
  if ((${#MISSING[@]})) && have apt-get && [[ $EUID -eq 0 ]]; then
    for package in "${MISSING[@]}"; do problem "package $package: missing, setup would install it (${WHY[$package]})"; done
  fi
  stop_if_problems
  say 'nothing is missing on this machine'
  exit 0
fi
stop_if_problems

# One setup at a time on this machine: apt, npm ci and the build must not meet themselves. util-linux is essential in
# Debian, so flock is there; where it is not, the first installation goes unlocked.
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if have flock; then
  lock_dir=/run/lock
  [[ -d $lock_dir && -w $lock_dir ]] || lock_dir=/run
  exec 9>"$lock_dir/clustermesh-setup.lock"
  if ! flock --nonblock 9; then
    say 'another setup is running on this machine; waiting for it'
    flock 9
    find_missing
  fi
fi
restore_services

if ((${#MISSING[@]})); then
  install_packages || exit 1
  probe_kernel # now with the tools that were missing before
  stop_if_problems
fi
install_node_packages || exit 1
if [[ $BUILD == yes ]]; then
  node scripts/build.mjs || exit 1
fi
