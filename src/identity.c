/*-------------------------------------------------------------------------
 *
 * identity.c
 *		Who is asking
 *
 * The same answer as Supabase's auth.uid(), without needing schema auth: the
 * setting of the one claim wins over the setting of all claims, an empty
 * setting counts as none (a transaction-local setting becomes '' and not
 * unset when the transaction ends), a malformed one is an error.
 *
 * Any session may SET these: an identity is as good as who may run SQL.
 *
 * src/identity.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "syncstate.h"

static const char *setting(const char *name);

PG_FUNCTION_INFO_V1(syncstate_current_user_id);

/*
 * syncstate_current_user_id() -> uuid
 *
 * The user that the session's JWT claims name, or null.
 *
 * Reads request.jwt.claim.sub, else "sub" in request.jwt.claims.
 *
 * Errors: 22P02 if the claims are not JSON or the subject is not a uuid.
 */
Datum
syncstate_current_user_id(PG_FUNCTION_ARGS)
{
	const char *subject = setting("request.jwt.claim.sub");

	if (subject == NULL)
	{
		const char *claims = setting("request.jwt.claims");

		if (claims != NULL)
		{
			Datum		json = DirectFunctionCall1(jsonb_in,
												   CStringGetDatum(claims));
			Datum		sub;

			/* ->> answers null by the call's result flag: no DirectFunctionCall */
			LOCAL_FCINFO(call, 2);

			InitFunctionCallInfoData(*call, NULL, 2, InvalidOid, NULL, NULL);
			call->args[0].value = json;
			call->args[0].isnull = false;
			call->args[1].value = PointerGetDatum(cstring_to_text("sub"));
			call->args[1].isnull = false;
			sub = jsonb_object_field_text(call);
			if (!call->isnull)
				subject = TextDatumGetCString(sub);
		}
	}

	if (subject == NULL || *subject == '\0')
		PG_RETURN_NULL();
	PG_RETURN_DATUM(DirectFunctionCall1(uuid_in, CStringGetDatum(subject)));
}

/* The value of a setting, or NULL where it is unset or empty. */
static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return (value == NULL || *value == '\0') ? NULL : value;
}
