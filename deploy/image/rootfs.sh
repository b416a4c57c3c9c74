#!/bin/sh
# Puts together the root of the image: the tools that the init containers need, the libraries those
# tools load, root certificates, and nothing else: no shell, no package manager.
#
#   rootfs.sh DIRECTORY    (on Debian with nftables, iptables and ca-certificates installed)
set -eu
root=$1

copy() { # a file and, where it is a link, what it leads to, under the same names
  for file in "$@"; do
    mkdir -p "$root$(dirname "$file")"
    while [ -L "$file" ]; do
      target=$(readlink "$file")
      case $target in /*) ;; *) target=$(dirname "$file")/$target ;; esac
      [ -e "$root$file" ] || [ -L "$root$file" ] || ln -s "$target" "$root$file"
      file=$target
      mkdir -p "$root$(dirname "$file")"
    done
    [ -e "$root$file" ] || cp -p "$file" "$root$file"
  done
}

with_libraries() { # programs and plug-ins: themselves and all they load
  for program in "$@"; do
    copy "$program"
    ldd "$program" 2>/dev/null | tr -s ' \t' '\n' | grep '^/' | while read -r library; do copy "$library"; done
  done
}

# On a merged-usr system ldd names libraries through /lib, which is a link; keep it one.
for directory in bin sbin lib lib64; do
  if [ -L "/$directory" ]; then
    mkdir -p "$root/usr/$directory"
    ln -sfn "usr/$directory" "$root/$directory"
  fi
done

plugins=$(find /usr/lib -type d -name xtables | head -n 1)
with_libraries /bin/cp "$(command -v ip || echo /sbin/ip)" /usr/sbin/nft /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi
for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
  ln -sf xtables-nft-multi "$root/usr/sbin/$tool"
done
# What our iptables rules use: DNAT, REDIRECT, DROP, REJECT, comments, connection state.
for plugin in tcp udp comment conntrack standard DNAT REDIRECT REJECT; do
  for file in "$plugins"/libxt_$plugin.so "$plugins"/libipt_$plugin.so "$plugins"/libip6t_$plugin.so; do
    if [ -e "$file" ]; then with_libraries "$file"; fi
  done
done
# What the programs themselves load.
with_libraries /lib/*-linux-gnu/libgcc_s.so.1 /lib/*-linux-gnu/libm.so.6

copy /etc/ssl/certs/ca-certificates.crt
mkdir -p "$root/etc" "$root/run" "$root/tmp"
printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"

# The time at which it was built is not part of what it is.
find "$root" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
