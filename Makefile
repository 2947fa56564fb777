EXTENSION   = syncstate syncstate_router
MODULE_big  = syncstate
OBJS        = src/syncstate.o src/check.o src/catalog.o src/state.o \
              src/store.o src/policy.o src/schedule.o src/due.o src/news.o src/source.o \
              src/channel.o src/push.o \
              src/transition.o src/access.o src/walk.o src/crowd.o src/cap.o src/args.o \
              src/lifecycle.o src/spread.o src/batch.o src/account.o \
              src/request.o src/revive.o src/claim.o \
              src/peek.o src/guard.o src/budget.o src/rate.o src/identity.o
DATA        = $(wildcard sql/syncstate--*.sql sql/syncstate_router--*.sql)
# No DOCS: the server has one directory for the pages of all extensions, where
# names like "install.md" would be taken for others', and links would break.
PGFILEDESC  = "syncstate - per-user state of incremental syncs"

# Tests, in this order.  `make installcheck` runs all three kinds against a
# running server, like that of any other extension.
REGRESS     = install identity acl policy guard lifecycle errors accounts claim caps kinds \
              steering budget rate report resync push sweep ways nested fences leases \
              parked news settings sources overview property check uninstall
ISOLATION   = claim lease request source_limit notify report deadlocks push rebalance \
              fence stale accounts ddl
PROVE_TESTS = test/t/*.pl
TAP_TESTS   = 1

ISOLATION_OPTS = --inputdir=test

# No bitcode: our functions run queries, so inlining them gains nothing, and
# building it would take the very clang that the server was built with.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))

ifdef PGXS
include $(PGXS)
$(OBJS): $(wildcard src/*.h)
else
all install installcheck clean:
	@echo "$(PG_CONFIG) knows no server headers: install postgresql-server-dev," \
		"or say PG_CONFIG=/path/to/pg_config" >&2; exit 1
endif

# The release archives, as PGXN takes them: what is committed, in a directory
# of its own, if all files agree which version this is.
.PHONY: dist
dist:
	@git diff --quiet HEAD || \
		{ echo "commit first: the archive holds what is committed" >&2; exit 1; }
	@release=$$(test/versions) && for format in zip tar.gz; do \
		git archive --format=$$format --prefix=syncstate-$$release/ \
			-o syncstate-$$release.$$format HEAD && \
		echo syncstate-$$release.$$format || exit; \
	done

# Everything from nothing: install what is missing, build, and run against a
# throw-away server.  See test/setup for the choice of the server's version.
# Without the npm packages only the tests that need them fail, and the demo uses
# Python instead.
.PHONY: test demo demo-shards bench bench-full simulate types
test:
	@rm -rf results output_iso tmp_check regression.diffs regression.out
	@$(ready) && { test/node/setup || :; } && test/with-server test/run
demo:
	@$(call ready,demo) && { test/node/setup || :; } && test/with-server test/demo/run
demo-shards:
	@$(ready) && { test -e "$$($$PG_CONFIG --sharedir)/extension/plproxy.control" || { \
		echo "PL/Proxy is not installed for this server; in Debian it is" \
			"postgresql-VERSION-plproxy" >&2; exit 1; }; } && \
		test/with-server --shards 4 test/demo/run
bench:
	@$(ready) && test/bench/run --results test/bench/results/quick && \
		test/bench/run --results test/bench/results/quick --report
bench-full:
	@$(ready) && test/bench/run --size full && test/bench/run --report

# After a change of the schema: the TypeScript types of the examples.
types:
	@$(ready) && test/node/setup && types=$$(test/with-server test/node/types) && \
		printf '%s\n' "$$types" >examples/syncstate-types.ts

# The server may run in a copy of the tree: what the simulation writes comes
# through a pipe.
simulate:
	@$(ready) && archive=$$(mktemp) && trap 'rm -f "$$archive"' EXIT && \
		{ test/with-server test/simulate/simulate.py --archive >"$$archive"; status=$$?; } && \
		tar -x -f "$$archive" -C test/simulate && exit $$status

define ready
PG_CONFIG=$$(test/setup $(1)) && export PG_CONFIG && \
	$(MAKE) -s all && \
	$$(test -w "$$($$PG_CONFIG --pkglibdir)" || echo sudo) \
		$(MAKE) -s PG_CONFIG="$$PG_CONFIG" install
endef
