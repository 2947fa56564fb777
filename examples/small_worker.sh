#!/usr/bin/env bash
# A small worker for Google Calendar in psql and shell, to read or to start from: a whole sync in
# a file, then into the database. See worker.py for checkpoints, and for three more APIs.
# It needs bash, psql, curl, items.sql, and a login role that was given to
# syncstate.grant_worker() and may write the items. Run as many as you like.
#
# DATABASE_URL says which database (ps shows it: keep the password in .pgpass); without it PGHOST
# and so on. It takes connections of our own: no LISTEN through a transaction pooler.
set -uo pipefail
name=${WORKER_NAME:-worker-$$} stop='' user='' account='' resource='' lease='' dir=$(mktemp -d)
trap 'stop=1' TERM INT
trap : PIPE # the database is gone: see rest()
trap 'rm -rf "$dir"; kill ${LISTENER_PID:-} 2>/dev/null' EXIT
psql=(psql -d "${DATABASE_URL:-}" -XqAt -F $'\x1f' -v ON_ERROR_STOP=1 -v VERBOSITY=verbose)
access_token() { :; } && echo 'access_token() is not written yet' >&2 && exit 1 # yours: prints the token of $user, $account; with "refused", a new one
log() { echo "$name: $*"; }
# db [NAME=VALUE...] <<<SQL: runs it; its psql variables, and the row's. An error is in $dir/error.
db() (
	trap '' TERM # who ends us and all we started, as systemd does, must not cut off a claim or a report
	"${psql[@]}" -v{user="$user",account="$account",resource="$resource",lease="$lease"} "${@/#/-v}" -f - 2>"${error:-$dir/error}"
)

# call FUNCTION [ARGUMENTS [NAME=VALUE...]]: a lifecycle call with the row's lease; prints the status.
call() {
	db "${@:3}" <<<"SELECT status FROM syncstate.$1(:'user', 'google_calendar', lease => :'lease',
		resource => :'resource', account => :'account' ${2:+, $2})"
}
# The heartbeat; it ends with us, however we do.
heartbeat() { while sleep "$1" && kill -0 $$; do error=/dev/null call renew_sync_lease; done; }

fetch() { # one page, into $dir/page
	: >"$dir/page"
	read -r status retry_after < <(curl -s -m 60 -A "$name" -o "$dir/page" \
		-w '%{http_code} %header{retry-after}\n' -H @- -G --data-urlencode "maxResults=${PAGE_SIZE:-250}" \
		${token:+--data-urlencode "syncToken=$token"} ${page:+--data-urlencode "pageToken=$page"} \
		"${API_URL:-https://www.googleapis.com}/calendar/v3/$path" \
		<<<"Authorization: Bearer $(access_token "${1:-}")")
	[ "$status${1:-}" != 401 ] || fetch refused
}

# All pages, as one JSON array, which PostgreSQL reads; or one report of why not.
sync() {
	local page='' status='' retry_after kind=permanent
	while [ -z "$stop" ] && fetch && [ "$status" = 200 ]; do
		echo "${page:+,}$(<"$dir/page")"
		page=$(db file="$dir/page" <<<"\\set page \`cat :'file'\`
			SELECT :'page'::jsonb ->> 'nextPageToken'")
		if [ -z "$page" ]; then break; fi
	done >"$dir/pages"
	case ${stop:+stop}$status in
	stop*) call release_sync ;;
	200) write || { ! grep -q PT4 "$dir/error" && log "$(<"$dir/error")" && echo 'was not written' >"$dir/page" && : >"$dir/error" && fail; } ;;
	410)
		if grep -q '"reason": *"deleted"' "$dir/page"; then fail
		elif [ "$(call clear_sync_token)" = syncing ]; then token='' && sync; fi ;;
	401) kind=auth fail ;;
	000 | 408 | 5??) kind=transient fail ;;
	*)
		if [ "$status" = 429 ] || grep -Eq '"((r|userR)ateLimit|quota)Exceeded"' "$dir/page"; then
			call mark_rate_limited "retry_after => substring(:'wait', '^[0-9]+$')::interval" wait="$retry_after"
		else ! grep -q '"insufficientPermissions"' "$dir/page" || kind=auth; fail; fi ;;
	esac
}

fail() { # with the answer of the provider: users can read it
	db kind="$kind" why="$status $(<"$dir/error")" file="$dir/page" <<'SQL'
\set text `cat :'file'`
SELECT status FROM syncstate.mark_sync_failed(:'user', 'google_calendar',
	left('HTTP ' || :'why' || :'text', 500), :'kind', :'lease', :'resource', account => :'account');
SQL
}
# Items and cursor in one transaction: both or neither.
write() {
	db file="$dir/pages" full="$([ -n "$token" ] || echo 1)" <<'SQL'
\set text `cat :'file'`
SELECT jsonb_path_query_array(p, '$[*].items[*]') AS items, p -> -1 ->> 'nextSyncToken' AS cursor
FROM (SELECT ('[' || :'text' || ']')::jsonb AS p) AS pages \gset
BEGIN;
SELECT FROM write_items(:'user', 'google_calendar', :'resource', :'lease', (SELECT coalesce(jsonb_object_agg(e ->> 'id',
	CASE WHEN NOT e @? '$ ? (@.status == "cancelled" && !exists(@.recurringEventId) || @.deleted == true || @.hidden == true)' THEN e END), '{}')
	FROM jsonb_array_elements(:'items') AS e), :'full' <> '', is_list => :'resource' = '', account => :'account');
SELECT status FROM syncstate.mark_sync_completed(:'user', 'google_calendar', jsonb_array_length(:'items'), :'cursor',
	lease => :'lease', resource => :'resource', account => :'account');
COMMIT;
SQL
}
# Until work falls due or somebody notifies us; ten minutes at most. psql tells of notifications
# after a command only, so each second it gets one that does nothing.
rest() {
	local seconds line
	if [ -z "${LISTENER_PID:-}" ]; then # first listen, then look once more
		coproc LISTENER { exec "${psql[@]}" 2>&1; }
		echo "LISTEN syncstate; SELECT 'listens';" >&"${LISTENER[1]}"
		read -r line <&"${LISTENER[0]}"
		[ "$line" = listens ] || { log "database: $line"; sleep 5; }
		return
	fi
	seconds=$(db <<<"SELECT greatest(1, ceil(extract(epoch FROM least(syncstate.next_sync_due('google_calendar'),
		clock_timestamp() + '10 minutes') - clock_timestamp())))") || { log "database: $(head -n 1 "$dir/error")"; sleep 5; return; }
	log sleeps
	for ((; seconds > 0; seconds--)); do
		echo 'SELECT 1 WHERE false;' >&"${LISTENER[1]:--}" || return # it has lost its connection
		if [ -n "$stop" ] || read -r -t 1 line <&"${LISTENER[0]:--}"; then return; fi
	done
}

while [ -z "$stop" ]; do
	if IFS=$'\x1f' read -r user account resource lease token every path < <(db <<<"SELECT user_id, account, resource, lease,
		sync_token, extract(epoch FROM lease_expires_at - last_sync_at) / 3, coalesce('calendars/' || nullif(
		regexp_replace(encode(convert_to(resource, 'UTF8'), 'hex'), '..', '%\\&', 'g'), '') || '/events', 'users/me/calendarList')
		FROM syncstate.claim_due_syncs('google_calendar', 1)"); then
		heartbeat "$every" >/dev/null & beat=$!
		sync >"$dir/out" || echo "dropped: $(head -n 1 "$dir/error")" >"$dir/out"
		log "$user: $(<"$dir/out")"
		kill "$beat" 2>/dev/null || : # gone already, if we all were told to stop
	else
		rest
	fi
done || : # asked to stop, it did, whatever was cut off
