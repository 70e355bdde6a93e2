# Sourced first by the scripts here: of the caller's environment counts what is listed, and nothing else reaches docker, kind,
# kubectl, pip or Go. cluster/README.md says what each is for.
# shellcheck shell=bash
meant='PATH|HOME|USER|LOGNAME|TERM|TMPDIR|XDG_*|PGHC_*'                           # where programs and files are; our own
meant+='|DOCKER_HOST|DOCKER_CONTEXT|DOCKER_CONFIG|DOCKER_CERT_PATH|DOCKER_TLS_VERIFY' # which engine
meant+='|*_proxy|*_PROXY|SSL_CERT_*|*_CA_BUNDLE|PIP_*'                            # how packages are fetched here
meant+='|GOPROXY|GOPRIVATE|GONOPROXY|GONOSUMDB|GOSUMDB|GOPATH|GOCACHE|GOMODCACHE'
for one in $(compgen -e); do
  # shellcheck disable=SC2053  # a pattern
  if [[ $one != @($meant) ]]; then unset -v "$one" 2>/dev/null || export -n "${one?}"; fi
done
for one in $(compgen -A function); do unset -f "$one"; done # exported ones go before programs
unset one meant CDPATH
export LC_ALL=C
umask 022 # what is copied into an image is read there by another user
