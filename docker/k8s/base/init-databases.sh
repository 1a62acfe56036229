#!/bin/sh
# A database and a role each for stoplab and MLflow; PostgreSQL's image runs this once, when its
# volume is empty. The passwords are those of the service files that the two connect by.
set -eu
for name in stoplab mlflow; do
  psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<SQL
\set password \`sed -n 's/^password=//p' "${SECRETS:-/run/secrets}/${name}_db"\`
CREATE ROLE ${name} LOGIN PASSWORD :'password';
CREATE DATABASE ${name} OWNER ${name};
REVOKE CONNECT ON DATABASE ${name} FROM PUBLIC;
SQL
done
