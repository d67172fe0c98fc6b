#!/bin/sh
# Runs once beside the object store of infra/compose.yaml: the bucket, the roles' policies, and the two keys that the
# service needs. Keys for people who publish or pull are made the same way. Repeating it changes nothing.
set -eu
mc alias set store http://store:9000 "$MOA_STORE_ROOT_USER" "$MOA_STORE_ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing store/moa
for role in ingest train publish pull watch; do
  sed 's/BUCKET/moa/g; s/PREFIX/moa/g; s/PHOTOS/photos/g' "/policies/$role.json" > "/tmp/$role.json"
  mc admin policy create store "$role" "/tmp/$role.json"
done
mc admin user add store "$MOA_STORE_KEY" "$MOA_STORE_SECRET"
mc admin user add store "$MOA_WATCH_KEY" "$MOA_WATCH_SECRET"
# Fails where it is attached already, which is as good.
mc admin policy attach store ingest train publish --user "$MOA_STORE_KEY" || true
mc admin policy attach store watch --user "$MOA_WATCH_KEY" || true
