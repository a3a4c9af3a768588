#!/bin/sh
# Makes the passwords of deploy/compose.yaml, each once, into volumes that only who needs them mounts.
set -eu
umask 077
secrets=${1:-/secrets}
# The user that runs the service, and the one that runs Postgres, in their images.
service=${2:-1000:1000}
postgres=${3:-999:999}

# make FOLDER FILE OWNER TEXT: whole or not at all, and never again.
make() {
  if [ ! -e "$secrets/$1/$2" ]; then
    printf '%s\n' "$4" >"$secrets/$1/$2.new"
    chown "$3" "$secrets/$1/$2.new"
    chmod 400 "$secrets/$1/$2.new"
    mv "$secrets/$1/$2.new" "$secrets/$1/$2"
  fi
  chown "$3" "$secrets/$1"
}

password() {
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# The passwords first, the URLs from what is there then: it may have been stopped in between.
make postgres password "$postgres" "$(password)"
make postgres migrate_password "$postgres" "$(password)"
make postgres serve_password "$postgres" "$(password)"
url() {
  echo "postgres://checkpointd_$1:$(cat "$secrets/postgres/$1_password")@postgres:5432/checkpointd"
}
make migrate url "$service" "$(url migrate)"
make serve url "$service" "$(url serve)"
# Where the service keeps the agents' key.
chown "$service" "$secrets/state"
chmod 700 "$secrets/state"
