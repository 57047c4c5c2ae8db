#!/bin/sh
# Stands in for tar under CRIU, which keeps each tmpfs of a container as a compressed archive: three processes for each, on
# either side, while the service stands still. Most are empty ones that a runtime has put, read-only, over directories of
# /proc and /sys. Their archive is always the same 45 bytes, so these are written and recognised here. Others go to the real
# tar, whose path is in the file `tar` beside the directory of this link, but not to gzip: images travel compressed where
# that is worth it. A first line says so to the one who unpacks.
plain='ums: plain tar'

empty() {
    printf '\037\213\010\000\000\000\000\000\002\003\355\301\001\015\000\000\000\302\240\367\117\155\016\067\240\000'
    printf '\000\000\000\000\000\000\000\000\200\067\003\232\336\035\047\000\050\000\000'
}

read -r tar <"${0%/bin/*}/tar" || [ -n "$tar" ] || exit 127
case "$1 $2" in
    '--create --gzip')
        # Nobody can have changed the directory itself where not even root may write.
        if [ ! -w /proc/self/fd/0/. ]; then
            none=yes
            for name in /proc/self/fd/0/* /proc/self/fd/0/.[!.]* /proc/self/fd/0/..?*; do
                [ ! -e "$name" ] && [ ! -L "$name" ] || none=''
            done
            [ -z "$none" ] || { empty; exit; }
        fi
        shift 2
        printf '%s\n' "$plain"
        exec "$tar" --create "$@"
        ;;
    '--extract --gzip')
        # The shell takes no byte beyond the end of the line, and leaves out zeros, on both sides.
        read -r head
        [ "$head" != "$(empty)" ] || exit 0
        if [ "$head" = "$plain" ]; then
            shift 2
            exec "$tar" --extract "$@"
        fi
        # Opened by its path, the image is read from its beginning once more.
        exec "$tar" "$@" </proc/self/fd/0
        ;;
esac
exec "$tar" "$@"
