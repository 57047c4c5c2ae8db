import fastify, {
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
} from 'fastify';
import type { z } from 'zod';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';

/** Bodies are small control messages; bulk has a path of its own. A large specification fits. */
const BODY_LIMIT_BYTES = 8 * 1024 * 1024;

const STATUS: Partial<Record<ErrorCode, number>> = {
  UMS_E_INTERNAL: 500,
  UMS_E_USAGE: 400,
  UMS_E_PEER_MESSAGE: 400,
  UMS_E_SERVICE_UNKNOWN: 404,
  UMS_E_SYSTEM_UNKNOWN: 404,
  UMS_E_MIGRATION_UNKNOWN: 404,
  UMS_E_PEER_UNREACHABLE: 502,
  UMS_E_TIMEOUT: 504,
};

export interface Call {
  params: Record<string, string>;
  query: Record<string, string>;
  request: FastifyRequest;
  reply: FastifyReply;
}

/** Parses what came in; on the local API that is a usage error, from a peer it is a malformed message. */
export function parseInput<T>(schema: z.ZodType<T>, value: unknown, code: 'UMS_E_USAGE' | 'UMS_E_PEER_MESSAGE'): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.slice(0, 5).map((issue) => `${issue.path.join('.') || 'body'}: ${issue.message}`);
  throw new UmsError(code, {
    message: `The request is not well-formed: ${issues.join('; ')}.`,
    fault: code === 'UMS_E_USAGE' ? 'user' : 'source',
    state: 'Nothing was changed.',
    mend: code === 'UMS_E_USAGE' ? 'See the command’s --help.' : 'Run the same version of ums on both systems.',
  });
}

export function createHttp(
  log: Logger,
  options: Pick<FastifyServerOptions, 'serverFactory'>,
  malformed: 'UMS_E_USAGE' | 'UMS_E_PEER_MESSAGE',
): FastifyInstance {
  const app = fastify({ ...options, bodyLimit: BODY_LIMIT_BYTES, forceCloseConnections: true, requestTimeout: 0 });
  app.setErrorHandler((error, request, reply) => {
    const failure = asHttpFailure(error, malformed);
    if (failure.code === 'UMS_E_INTERNAL') log.error({ err: error, url: request.url }, 'request failed by a defect');
    else log.info({ code: failure.code, url: request.url, why: failure.message }, 'request refused');
    void reply.status(STATUS[failure.code] ?? 409).send({ error: failure.toReport() });
  });
  app.setNotFoundHandler((request, reply) => {
    const failure = new UmsError(malformed, {
      message: `There is no ${request.method} ${request.url.slice(0, 200)}.`,
      fault: malformed === 'UMS_E_USAGE' ? 'user' : 'source',
      state: 'Nothing was changed.',
      mend: 'Run the same version of ums on both ends.',
    });
    void reply.status(404).send({ error: failure.toReport() });
  });
  return app;
}

/** fastify's own refusals (body too large, not JSON) are the sender's fault and get that code. */
function asHttpFailure(error: unknown, malformed: 'UMS_E_USAGE' | 'UMS_E_PEER_MESSAGE'): UmsError {
  if (
    error instanceof Error &&
    'statusCode' in error &&
    typeof error.statusCode === 'number' &&
    error.statusCode < 500
  ) {
    return new UmsError(malformed, {
      message: `The request is not well-formed: ${error.message}.`,
      fault: malformed === 'UMS_E_USAGE' ? 'user' : 'source',
      state: 'Nothing was changed.',
      mend: 'Run the same version of ums on both ends.',
    });
  }
  return toUmsError(error);
}
