#!/bin/sh
# Makes what a lab keeps secret, a file each; files that are there stay as they are.
#
#   docker/make-secrets.sh docker/secrets          for compose.yaml
#   docker/make-secrets.sh docker/k8s/secrets      for Kubernetes
#
# Containers of several users read the files, so the files are open and the folder is closed.
set -eu
folder=${1:?which folder? such as docker/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# keep NAME: what comes on stdin, unless there is such a file.
keep() {
  if [ -e "$folder/$1" ]; then
    cat >/dev/null
  else
    cat >"$folder/$1.draft"
    chmod 444 "$folder/$1.draft"
    mv "$folder/$1.draft" "$folder/$1"
    echo "made $folder/$1"
  fi
}

# A service file of libpq: the password is in no URL, environment or list of processes.
service() {
  printf '[%s]\nhost=postgres\nport=5432\ndbname=%s\nuser=%s\npassword=%s\n' "$1" "$1" "$1" "$(random)"
}

random | keep postgres_password
service stoplab | keep stoplab_db
service mlflow | keep mlflow_db
random | keep ray_token
{ printf 'stl_'; random; } | keep admin_token
