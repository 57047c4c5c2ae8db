import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { required } from '../oci/answers.ts';
import { HttpApi, SchedulerRefusal } from '../scheduler/http.ts';
import { type MarathonAccess, readAccess } from './access.ts';
import { type App, appsSchema, changedSchema, type Info, infoSchema, oneAppSchema, versionsSchema } from './schema.ts';

/** Marathon's HTTP interface, version 2. */
const NOT_FOUND = 404;
const CONFLICT = 409;

export class MarathonApi {
  readonly #http: HttpApi;

  constructor({ address, authorization }: MarathonAccess, limit_ms?: number) {
    this.#http = new HttpApi(
      {
        answerer: { name: 'Marathon', supported: 'Marathon 1.5 and later are', version: 'curl $MARATHON_URL/v2/info' },
        address,
        headers: authorization === undefined ? {} : { authorization },
        mend: 'See whether Marathon runs, and whether MARATHON_URL leads to it.',
        mendRights: 'Give the agent a token by MARATHON_TOKEN, or a user within MARATHON_URL, that may change the app.',
      },
      limit_ms,
    );
  }

  /** As the environment says at this moment. */
  static here(): MarathonApi {
    const access = readAccess();
    if (access !== undefined) return new MarathonApi(access);
    throw new UmsError('UMS_E_ENGINE_MISSING', {
      message: 'Nobody has said where Marathon is',
      fault: 'user',
      mend: 'Name it by MARATHON_URL in the environment of the agent.',
    });
  }

  async info(): Promise<Info> {
    return required(await this.#http.call('/v2/info', infoSchema));
  }

  async apps(): Promise<App[]> {
    return required(await this.#http.call('/v2/apps?embed=apps.tasks&embed=apps.lastTaskFailure', appsSchema)).apps;
  }

  async app(id: string): Promise<App | undefined> {
    const path = `${pathOf(id)}?embed=app.tasks&embed=app.lastTaskFailure`;
    return (await this.#http.call(path, oneAppSchema, { absent: [NOT_FOUND] }))?.app;
  }

  /** So many instances from now on, and nothing else of it is changed. The answer is the version that this made. */
  async scale(id: string, instances: number): Promise<string> {
    const body = { instances };
    const answer = await orLocked(id, this.#http.call(unforced(id), changedSchema, { method: 'PATCH', body }));
    return required(answer).version;
  }

  /** When it was changed, each time. */
  async versions(id: string): Promise<string[]> {
    return required(await this.#http.call(`${pathOf(id)}/versions`, versionsSchema)).versions;
  }

  /** Absent already is success. */
  async remove(id: string): Promise<void> {
    await orLocked(id, this.#http.call(unforced(id), z.unknown(), { method: 'DELETE', absent: [NOT_FOUND] }));
  }

  /** Together with the deployment that is making it: only for one that nobody else has had a hand in. */
  async takeBack(id: string): Promise<void> {
    await this.#http.call(`${pathOf(id)}?force=true`, z.unknown(), { method: 'DELETE', absent: [NOT_FOUND] });
  }

  /** False when there is one of its name already; it is left as it is. */
  async create(app: { id: string }): Promise<boolean> {
    try {
      await this.#http.call('/v2/apps', z.unknown(), { method: 'POST', body: app });
      return true;
    } catch (error) {
      if (error instanceof SchedulerRefusal && error.status === CONFLICT) return false;
      throw error;
    }
  }
}

function pathOf(id: string): string {
  return `/v2/apps${id}`;
}

/** Marathon refuses what would end a change that is under way, if it is asked to. */
function unforced(id: string): string {
  return `${pathOf(id)}?force=false`;
}

async function orLocked<T>(id: string, asked: Promise<T>): Promise<T> {
  try {
    return await asked;
  } catch (error) {
    if (!(error instanceof SchedulerRefusal) || error.status !== CONFLICT) throw error;
    throw new UmsError('UMS_E_ENGINE', {
      message: `Marathon is still changing the app ${id}: ${error.said}`,
      fault: 'user',
      state: 'What is under way there goes on, and nothing else was changed.',
      mend: 'Wait for the deployment, or end it (Marathon: /v2/deployments), and try again.',
      cause: error,
    });
  }
}
